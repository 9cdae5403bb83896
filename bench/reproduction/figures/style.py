"""What the figures share: which methods are drawn as lines, colours, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpt.report.style import MUTED, method_colours, styled, to_png
from hpt.support.files import write_file_atomically

from ..task import START

IN_LINES = {
    "sft": "-",
    "sft-verified": "--",
    "grpo": "-",
    "sft-then-grpo": "-",
    "sft-verified-then-grpo": "--",
    "luffy": "-",
    "srft": "-",
    "hpt": "-",
    "hpt-offpolicy": "--",
    "hpt-mix": ":",
}
"""The methods that figures with lines show, besides the start model, and how; all of them would hide each other."""


def colour_of(method: str) -> str:
    """Variants of a method share its colour."""
    return _COLOURS[_family(method)]


def line_style(method: str) -> dict[str, Any]:
    """Of a method in `IN_LINES`, or of the start model."""
    return {"color": colour_of(method), "linestyle": IN_LINES.get(method, "-"), "lw": 1.6}


def title_of(method: str) -> str:
    return "start model" if method == START else method


def _family(method: str) -> str:
    if method.endswith("-then-grpo"):
        return "sft-then-grpo"
    return method.split("-")[0]


_COLOURS = method_colours(list(dict.fromkeys(map(_family, IN_LINES)))) | {START: MUTED}


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[list[list[Axes]]]:
    """The axes of a figure, which is saved as PNG at the end of the context."""
    with styled():
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn.subplots(rows, columns, squeeze=False).tolist()
        write_file_atomically(path, to_png(drawn, dpi=120))
