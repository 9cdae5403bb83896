"""Held-out accuracy: along the steps, before and after training, and by grade."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hpt.report.conditions import Conditions
from hpt.report.evaluations import ALL, grades_of
from hpt.report.panels.axes import (
    PERCENT,
    Handle,
    group_styles,
    label_ends,
    last_step,
    marker_size,
    start_at_zero,
    step_axis,
    title_and_legend,
)
from hpt.report.runs import Run, RunGroup
from hpt.report.style import GRADE_COLOURS, INK, MUTED, PAPER


def draw_accuracy(axes: Axes, groups: Sequence[RunGroup], held_out: Conditions | None, *, legend: bool = True) -> bool:
    """Accuracy along the steps: of a single group overall and by grade, of several groups overall.

    held_out: only groups that were evaluated under these conditions are drawn.
    Returns False, with nothing drawn, if no run was evaluated.
    """
    handles: list[Handle] = []
    drawn = [style for style in group_styles(groups) if style[0].held_out == held_out]
    for index, (group, colour, dash) in enumerate(drawn):
        total = group.curve("eval/correct", "eval/count")
        if not len(total.steps):
            continue
        style = {"color": colour if len(groups) > 1 else INK, "linestyle": dash, "lw": 2.2, "marker": "o"}
        style["ms"] = marker_size(index, len(drawn))
        if len(group.runs) > 1:
            for run in group.runs:
                curve = run.curve("eval/correct", "eval/count")
                axes.plot(curve.steps, curve.values(), color=style["color"], lw=0.9, alpha=0.4)
        axes.plot(total.steps, total.values(), mec=PAPER, mew=0.8, clip_on=False, zorder=4, **style)
        handles.append((group.label, Line2D([], [], **style)))
    if not handles:
        return False
    if len(groups) == 1:
        _draw_grades(axes, groups[0])
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel("right answers")
    start_at_zero(axes)
    step_axis(axes, last_step(groups))
    title_and_legend(axes, _title(held_out), handles if legend and len(groups) > 1 else [])
    return True


def draw_before_after(axes: Axes, run: Run) -> None:
    """Accuracy of each grade at the first and at the last evaluation, as a dot that moves along a line."""
    before, after = run.evaluations[0], run.evaluations[-1]
    lines = [
        (grade, before.accuracy_of(grade), after.accuracy_of(grade), _grade_colour(after.grades, grade))
        for grade in after.grades
    ]
    lines.append((ALL, before.accuracy, after.accuracy, INK))
    lines.reverse()  # from the bottom up
    for row, (_, start, end, colour) in enumerate(lines):
        if start is None or end is None:
            continue
        axes.plot([start, end], [row, row], color=colour, lw=3, alpha=0.35, solid_capstyle="butt", zorder=2)
        axes.plot(start, row, "o", ms=8, mfc=PAPER, mec=colour, mew=1.8, zorder=3)
        axes.plot(end, row, "o", ms=8.5, color=colour, zorder=4)
        axes.annotate(
            f"{start:.0%} → {end:.0%}",
            (max(start, end), row),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=colour if end >= start else MUTED,
            weight="bold" if colour == INK else "normal",
        )
    axes.set_yticks(range(len(lines)), [name for name, *_ in lines])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-0.6, len(lines) - 0.4)
    axes.set_xlim(-0.02, 1.18)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    axes.set_title(f"By grade, step {before.step} → {after.step}: {run.held_out.name if run.held_out else 'held out'}")


def draw_by_grade(axes: Axes, groups: Sequence[RunGroup], held_out: Conditions) -> None:
    """Final accuracy of each grade: one bar per group, the mean over its runs, with a whisker from worst to best run.

    A mark in each bar is the accuracy before training. Only groups that were evaluated under `held_out`, at least one.
    """
    evaluated = []
    for group, colour, _ in group_styles(groups):
        runs = [run for run in group.runs if run.evaluations]
        if runs and group.held_out == held_out:
            evaluated.append((group.label, colour, runs))
    finals = [run.evaluations[-1] for _, _, runs in evaluated for run in runs]
    grades = grades_of(finals)
    width = 0.8 / len(evaluated)
    for index, (_, colour, runs) in enumerate(evaluated):
        pairs = [
            (
                _known([run.evaluations[0].accuracy_of(grade) for run in runs]),
                _known([run.evaluations[-1].accuracy_of(grade) for run in runs]),
            )
            for grade in grades
        ]
        pairs.append(([run.evaluations[0].accuracy for run in runs], [run.evaluations[-1].accuracy for run in runs]))
        for column, (first, final) in enumerate(pairs):
            if not first or not final:
                continue
            x = column + (index - (len(evaluated) - 1) / 2) * width
            before = np.mean(first)
            axes.bar(x, np.mean(final), width * 0.86, color=colour)
            axes.plot([x - width * 0.43, x + width * 0.43], [before, before], color=INK, lw=1.6, zorder=4)
            if len(final) > 1:
                axes.plot([x, x], [min(final), max(final)], color=MUTED, lw=1.4, zorder=3)
    axes.set_xticks(range(len(grades) + 1), [*grades, ALL])
    axes.tick_params(axis="x", labelcolor=INK)
    axes.yaxis.set_major_formatter(PERCENT)
    start_at_zero(axes)
    handles: list[Handle] = [(label, Patch(color=colour)) for label, colour, _ in evaluated]
    handles.append(("before training", Line2D([], [], color=INK, lw=1.6)))
    title_and_legend(axes, f"By grade, after training: {held_out.name}", handles)


def _title(held_out: Conditions | None) -> str:
    return f"Held-out accuracy: {held_out.name}" if held_out else "Held-out accuracy"


def _draw_grades(axes: Axes, group: RunGroup) -> None:
    """One thin line per grade, named at its end; the line of all questions is drawn already."""
    grades = grades_of([evaluation for run in group.runs for evaluation in run.evaluations])
    ends = []
    for grade in grades:
        curve = group.curve(f"eval/correct/{grade}", f"eval/count/{grade}")
        if len(curve.steps):
            colour = _grade_colour(grades, grade)
            values = curve.values()
            axes.plot(curve.steps, values, color=colour, lw=1.4, marker="o", ms=3, clip_on=False, zorder=3)
            ends.append((values[-1], grade, colour))
    if grades:
        total = group.curve("eval/correct", "eval/count")
        ends.append((total.values()[-1], ALL, INK))
        label_ends(axes, ends)


def _grade_colour(grades: Collection[str], grade: str) -> str:
    return GRADE_COLOURS[list(grades).index(grade) % len(GRADE_COLOURS)]


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
