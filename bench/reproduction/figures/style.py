"""What the figures share: which methods are drawn as lines, colours, and how a figure is saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpt.report.style import MUTED, method_colours, styled, to_png
from hpt.support.files import write_file_atomically

from ..task import START

IN_LINES = (START, "sft", "sft-verified", "grpo", "sft-then-grpo", "srft", "hpt", "hpt-verified")
"""The methods that figures with lines show; all of them would hide each other."""


def colours(methods: Sequence[str]) -> dict[str, str]:
    """A variant of a method, with a hyphen after its name, may share a colour with another method."""
    return method_colours([method for method in methods if method != START]) | {START: MUTED}


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[list[list[Axes]]]:
    """The axes of a figure, which is saved as PNG at the end of the context."""
    with styled():
        drawn = Figure(figsize=size, layout="constrained")
        yield drawn.subplots(rows, columns, squeeze=False).tolist()
        write_file_atomically(path, to_png(drawn, dpi=120))
