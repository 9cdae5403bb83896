"""Held-out questions: curves of pass@k, and a map of which questions are solved when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hpt.report.panels.axes import Handle, accuracy_axis, group_styles, title_and_legend
from hpt.report.questions import Comparable, PassCurve, QuestionMap, first_evaluations, pass_curve
from hpt.report.runs import RunGroup
from hpt.report.style import INK, MUTED, PAPER, SHARE_COLOURS

SHARES = LinearSegmentedColormap.from_list("share of right responses", SHARE_COLOURS)
_STEPS_NAMED = 8  # at most, below a map
_MOST_BANDS = 3  # intervals are drawn as bands up to this number of curves


def draw_pass_at_k(axes: Axes, groups: Sequence[RunGroup], evaluations: Comparable, title: str) -> str:
    """Draws one curve per group that has the evaluation, and one before training. Returns the caption.

    evaluations: with more than one response per question.
    """
    curves = _pass_curves(groups, evaluations)
    handles: list[Handle] = []
    for index, (label, curve, colour, dash) in enumerate(curves):
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "lw": 2.2, "marker": "o", "ms": 4.5}
        means, lows, highs = zip(*curve.estimates, strict=True)
        ks = np.array(curve.ks, np.float64)
        if len(curves) <= _MOST_BANDS:
            axes.fill_between(ks, lows, highs, color=colour, alpha=0.13, lw=0)
        else:  # whiskers side by side, since bands would cover each other
            ks *= 2 ** (0.04 * (index - (len(curves) - 1) / 2))
            axes.vlines(ks, lows, highs, color=colour, lw=1.1, alpha=0.55)
        axes.plot(ks, means, mec=PAPER, mew=0.8, clip_on=False, zorder=4, **style)
        handles.append((label, Line2D([], [], **style)))
    _k_axis(axes, sorted({curve.n for _, curve, _, _ in curves}))
    accuracy_axis(axes)
    axes.set_ylabel("questions solved by any of k")
    title_and_legend(axes, title, handles if len(handles) > 1 else [])
    marks = "bands" if len(curves) <= _MOST_BANDS else "whiskers"
    origin = "" if evaluations.in_training else ", by hpt eval"
    return f"{evaluations.conditions}{origin}. Unbiased; {marks}: 95% intervals over questions."


def _pass_curves(groups: Sequence[RunGroup], evaluations: Comparable) -> list[tuple[str, PassCurve, str, Any]]:
    """Label, curve, colour and dash pattern of each curve; "before training" comes first."""
    own = [style for style in group_styles(groups) if style[0].label in evaluations.by_group]
    curves = [(group.label, pass_curve(evaluations.by_group[group.label]), colour, dash) for group, colour, dash in own]
    if evaluations.in_training:
        first = [evaluation for group, _, _ in own for evaluation in first_evaluations(group)]
        if first:
            curves.insert(0, ("before training", pass_curve(first), MUTED, (0, (4, 2))))
    return curves


def _k_axis(axes: Axes, counts: Sequence[int]) -> None:
    """A logarithmic axis with ticks at powers of 2, and at each n that is not close to one."""
    most = max(counts)
    powers = [2**power for power in range(most.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.9, most * 1.1)
    axes.xaxis.set_major_locator(FixedLocator([*powers, *(n for n in counts if n > 1.4 * powers[-1])]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set_xlabel("k, responses per question")


def draw_question_map(axes: Axes, found: QuestionMap, title: str) -> AxesImage:
    """Draws one row per question and one column per evaluation; lines separate the grades."""
    image = axes.imshow(found.shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    middles, names = [], []
    start = 0
    for grade in dict.fromkeys(found.grades):
        count = found.grades.count(grade)
        middles.append(start + (count - 1) / 2)
        names.append(grade)
        start += count
        if start < len(found.grades):
            axes.axhline(start - 0.5, color=PAPER, lw=2.5)
    axes.set_yticks(middles, names)
    axes.tick_params(axis="y", labelcolor=INK)
    every = -(-len(found.steps) // _STEPS_NAMED)
    axes.set_xticks(range(0, len(found.steps), every), [str(step) for step in found.steps[::every]])
    axes.set_xlabel("evaluation after step")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title)
    return image
