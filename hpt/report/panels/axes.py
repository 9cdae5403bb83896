"""What the panels share: scales, number formats, titles with legends, names at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hpt.report.runs import RunGroup
from hpt.report.style import DASHES, INK, MUTED, method_colours

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
PLAIN = FuncFormatter(lambda value, _: f"{value:.3g}")

Handle = tuple[str, Line2D | Patch]
"""An entry of a legend: its label and what it looks like."""

_LEGEND_CHARACTERS = 84  # that fit side by side in _LEGEND_WIDTH
_LEGEND_WIDTH = 6.6  # inches
_HANDLE_CHARACTERS = 6  # the width of a handle in characters


def group_styles(groups: Sequence[RunGroup]) -> list[tuple[RunGroup, str, Any]]:
    """Each group with its colour and dash pattern, which are the same in every panel."""
    colours = method_colours([group.label for group in groups])
    return [(group, colours[group.label], DASHES[i % len(DASHES)]) for i, group in enumerate(groups)]


def marker_size(index: int, count: int) -> float:
    """Of the `index`-th of `count` curves, in points: smaller for each that is drawn over the others."""
    return max(3.5, 4.5 + 1.8 * (count - 1 - index)) if count <= 4 else 4.5


def step_axis(axes: Axes, last_step: int, *, label: bool = True) -> None:
    """An x-axis from 0 to the last step, with ticks at integers."""
    axes.set_xlim(0, max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    if label:
        axes.set_xlabel("step")


def last_step(groups: Sequence[RunGroup]) -> int:
    return max(run.last_step for group in groups for run in group.runs)


def start_at_zero(axes: Axes) -> None:
    """Lets the y-axis start at 0, unless there are negative values."""
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if np.isfinite([low, high]).all() and low >= 0:
        axes.set_ylim(0, high * 1.06 if high else 1.0)


def accuracy_axis(axes: Axes) -> None:
    """A y-axis in percent, from 0 to the highest value."""
    axes.yaxis.set_major_formatter(PERCENT)
    highest = min(1.0, axes.dataLim.y1 * 1.06)
    axes.set_ylim(0, highest if highest else 1.0)


def title_and_legend(axes: Axes, title: str, handles: Sequence[Handle] = (), *, columns: int = 4) -> None:
    """A title and, between it and the axes, a legend of at most `columns` columns, if there are handles."""
    rows = _legend(axes, handles, columns) if handles else 0
    axes.set_title(title, pad=9 + 16 * rows)


def _legend(axes: Axes, handles: Sequence[Handle], columns: int) -> int:
    """Returns the number of rows."""
    longest = max(len(label) for label, _ in handles)
    figure = axes.get_figure(root=True)
    assert figure is not None
    fitting = int(_LEGEND_CHARACTERS * min(1, figure.get_figwidth() / _LEGEND_WIDTH))
    columns = max(1, min(columns, len(handles), fitting // (longest + _HANDLE_CHARACTERS)))
    axes.legend(
        [handle for _, handle in handles],
        [label for label, _ in handles],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.4,
        borderpad=0,
        columnspacing=1.3,
        handletextpad=0.5,
    )
    return math.ceil(len(handles) / columns)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Writes the names of lines at the right edge, moved up where they would overlap.

    ends: last value, name and colour of each line; the y-axis starts at 0. gap: as a share of the axes' height.
    """
    highest = max(1e-9, axes.dataLim.y1, *(value for value, _, _ in ends)) * 1.06
    position = -np.inf
    for value, name, colour in sorted(ends):
        position = max(value / highest, position + gap)
        axes.annotate(
            name,
            (1.015, position),
            xycoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9,
            weight="bold" if colour == INK else "normal",
        )


def draw_missing(axes: Axes, title: str, reason: str) -> None:
    """A panel with a title and, in place of numbers, the reason why there are none."""
    axes.set_title(title)
    step_axis(axes, 1, label=False)
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED, style="italic")
