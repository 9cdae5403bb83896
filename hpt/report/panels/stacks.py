"""Counts along the steps as shares of their sum, stacked to 100%: the gate's counts and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hpt.report.panels.axes import PERCENT, Handle, last_step, step_axis, title_and_legend
from hpt.report.panels.quantities import SFT_SHARE
from hpt.report.runs import RunGroup
from hpt.report.style import GATE_COLOURS, INK, VERDICT_COLOURS

_GATE_KEYS = [f"gate/{name}" for name in GATE_COLOURS]
_VERDICT_KEYS = [f"verify/{name}" for name in VERDICT_COLOURS]


def has_gate_counts(group: RunGroup) -> bool:
    return _counted(group, _GATE_KEYS)


def draw_gate_counts(axes: Axes, group: RunGroup, title: str, *, columns: int = 4, sft_line: bool = False) -> None:
    """Questions by how many of their rollouts are right; with sft_line also the share sent to SFT, as a line."""
    labels = [f"{name} right" for name in GATE_COLOURS]
    handles = _draw_shares(axes, group, _GATE_KEYS, labels, list(GATE_COLOURS.values()))
    sent = group.curve(SFT_SHARE.numerator, SFT_SHARE.denominator)
    if sft_line and len(sent.steps):
        axes.plot(sent.steps, sent.values(sent.window), color=INK, lw=2, zorder=4)
        handles.append(("sent to SFT", Line2D([], [], color=INK, lw=2)))
    axes.set_ylabel("share of questions")
    title_and_legend(axes, title, handles, columns=columns)


def has_verdicts(group: RunGroup) -> bool:
    return _counted(group, _VERDICT_KEYS)


def draw_verdicts(axes: Axes, group: RunGroup, title: str, *, columns: int = 4) -> None:
    """The verdicts on the rollouts, with the total of each in the legend."""
    totals = [sum(run.total(key) for run in group.runs) for key in _VERDICT_KEYS]
    labels = [f"{name} ({total:,.0f})" for name, total in zip(VERDICT_COLOURS, totals, strict=True)]
    handles = _draw_shares(axes, group, _VERDICT_KEYS, labels, list(VERDICT_COLOURS.values()))
    axes.set_ylabel("share of rollouts")
    title_and_legend(axes, title, handles, columns=columns)


def _counted(group: RunGroup, keys: Sequence[str]) -> bool:
    """Whether anything was counted under any of the keys."""
    return bool(group.shares(keys)[0].denominators.any())


def _draw_shares(
    axes: Axes, group: RunGroup, keys: Sequence[str], labels: Sequence[str], colours: Sequence[str]
) -> list[Handle]:
    curves = group.shares(keys)
    steps = curves[0].steps
    values = np.nan_to_num([curve.values(curve.window) for curve in curves])
    if len(steps) == 1:  # an area needs two points
        steps, values = np.array([steps[0] - 0.5, steps[0] + 0.5]), np.repeat(values, 2, axis=1)
    axes.stackplot(steps, values, colors=colours, lw=0)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(visible=False)
    step_axis(axes, last_step([group]))
    return [(label, Patch(color=colour)) for label, colour in zip(labels, colours, strict=True)]
