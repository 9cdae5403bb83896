"""What the figures share: which methods are drawn as lines, colours, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpt.report.style import MUTED, method_colours, styled, to_png
from hpt.support.files import write_file_atomically

from ..task import START

_SOLID = ("sft", "sft-verified", "grpo", "sft-then-grpo", "luffy", "srft", "hpt", "hpt-mix")
_DASHED = {"hpt-offpolicy": "hpt"}
"""Lines with the colour of another method: there are more methods than colours."""
IN_LINES = (*_SOLID, *_DASHED)
"""The methods that figures with lines show, besides the start model; all of them would hide each other."""
_COLOURS = method_colours(_SOLID) | {START: MUTED}


def line_style(method: str) -> dict[str, Any]:
    """Of a method in `IN_LINES`, or of the start model."""
    return {"color": _COLOURS[_DASHED.get(method, method)], "linestyle": "--" if method in _DASHED else "-"}


def title_of(method: str) -> str:
    return "start model" if method == START else method


def family_colours(methods: Iterable[str]) -> dict[str, str]:
    """Variants of a method share its colour."""
    families = {method: _family(method) for method in methods}
    colours = method_colours(list(dict.fromkeys(families.values())))
    return {method: colours[family] for method, family in families.items()}


def _family(method: str) -> str:
    if method.endswith("-then-grpo"):
        return "sft-then-grpo"
    return method.split("-")[0]


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[list[list[Axes]]]:
    """The axes of a figure, which is saved as PNG at the end of the context."""
    with styled():
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn.subplots(rows, columns, squeeze=False).tolist()
        write_file_atomically(path, to_png(drawn, dpi=120))
