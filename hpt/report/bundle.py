"""The page's own CSS and JavaScript, and KaTeX with its fonts, as text that the page embeds."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

_ASSETS = files("hpt.report") / "assets"
_SCRIPTS = ("data.js", "text.js", "filters.js", "detail.js", "browser.js")


@cache
def styles() -> str:
    """The page's CSS."""
    return _text("page.css") + _text("browser.css")


@cache
def katex_styles() -> str:
    """KaTeX's CSS, with its fonts inside."""

    def embedded(match: re.Match[str]) -> str:
        font = (_ASSETS / "katex" / match.group(1)).read_bytes()
        return f"url(data:font/woff2;base64,{base64.b64encode(font).decode()})"

    return re.sub(r"url\((fonts/[\w-]+\.woff2)\)", embedded, _text("katex/katex.min.css"))


@cache
def scripts() -> list[str]:
    """KaTeX, then the page's own files as one function, so that they share names with each other and nobody else."""
    own = "\n".join(map(_text, _SCRIPTS))
    return [_text("katex/katex.min.js"), f'(() => {{\n"use strict";\n{own}\n}})();\n']


def content_policy(*, reads_folder: bool) -> str:
    """A Content-Security-Policy under which the page runs its own scripts alone and loads nothing.

    reads_folder: it also runs the scripts of the folder beside it.
    """
    allowed = [f"'sha256-{_digest(script)}'" for script in scripts()]
    if reads_folder:
        allowed += ["'self'", "file:"]
    return (
        f"default-src 'none'; script-src {' '.join(allowed)}; "
        "style-src 'unsafe-inline'; img-src data:; font-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _text(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
