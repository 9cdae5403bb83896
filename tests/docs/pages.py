"""Reads the pages of the documentation: code blocks, links and the paths that they name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(?P<language>\w+)(?P<marks>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^):#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"`((?:hpt|kernels|bench|tests|examples|docs)/[\w./-]*)`")


@dataclass(frozen=True)
class Block:
    """A fenced block of code. title: the file that it shows, or "". runs: whether it is not marked `notest`."""

    language: str
    text: str
    title: str
    runs: bool
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', fence["marks"])
        line = text.count("\n", 0, fence.start("text")) + 1
        runs = "notest" not in fence["marks"].split()
        found.append(Block(fence["language"], fence["text"], title[1] if title else "", runs, line))
    return found


def links(page: Path) -> list[str]:
    """Relative targets, without their anchors."""
    return [link["target"] for link in _LINK.finditer(_prose(page))]


def paths(page: Path) -> list[str]:
    """Paths of the repository that the page names in code style; names such as NAME.py stand for any."""
    return [path for path in _PATH.findall(_prose(page)) if not re.search(r"[A-Z]{4}", path)]


def bench_commands(page: Path) -> list[str]:
    """Commands of `python -m bench` that the page names in code style."""
    return re.findall(r"`python -m bench (\w+)", _prose(page))


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))
