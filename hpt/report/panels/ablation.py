"""The gate's threshold gamma: held-out accuracy and the share sent to SFT of runs that differ only in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.lines import Line2D

from hpt.report.evaluations import ALL, grades_of
from hpt.report.panels.axes import PERCENT, Handle, accuracy_axis, label_ends, step_axis, title_and_legend
from hpt.report.panels.quantities import SFT_SHARE
from hpt.report.runs import RunGroup
from hpt.report.style import DASHES, GAMMA_COLOURS, GRADE_COLOURS, INK, PAPER, method_colours

GAMMA = "gate.gamma"


@dataclass(frozen=True)
class GammaFamily:
    """Groups that differ only in gamma, by gamma as a share of the rollouts. n: rollouts per question."""

    label: str
    groups: dict[float, RunGroup]
    n: int


def gamma_families(groups: Sequence[RunGroup]) -> list[GammaFamily]:
    """All families with at least two gammas."""
    found: dict[str, dict[float, RunGroup]] = {}
    for group in groups:
        gate = group.runs[0].config.get("gate")
        if GAMMA in group.settings and isinstance(gate, dict) and gate.get("kind", "switch") == "switch":
            others = [f"{key}={value}" for key, value in group.settings.items() if key != GAMMA]
            gamma = gate.get("gamma", 0)
            share = gamma / _rollouts(group) if isinstance(gamma, int) else gamma
            found.setdefault(", ".join([group.method, *others]), {})[share] = group
    return [
        GammaFamily(label, dict(sorted(members.items())), _rollouts(next(iter(members.values()))))
        for label, members in found.items()
        if len(members) > 1
    ]


def draw_final_accuracy(axes: Axes, families: Sequence[GammaFamily]) -> bool:
    """Accuracy at the last evaluation by gamma: one dot per run, a line through the means, whiskers of one std.

    For a single family also the means of each grade. Returns False, with nothing drawn, if no run was evaluated twice.
    """
    colours = method_colours([family.label for family in families])
    handles: list[Handle] = []
    for index, family in enumerate(families):
        colour = INK if len(families) == 1 else colours[family.label]
        style: dict[str, Any] = {"color": colour, "linestyle": DASHES[index % len(DASHES)], "lw": 2.2}
        accuracies = _final_accuracies(family)
        if not accuracies:
            continue
        for gamma, values in accuracies.items():
            axes.plot([gamma] * len(values), values, "o", color=colour, ms=4, alpha=0.4, mew=0)
            if len(values) > 1:
                mean, std = statistics.fmean(values), statistics.stdev(values)
                axes.plot([gamma, gamma], [mean - std, mean + std], color=colour, lw=1.4)
        means = [statistics.fmean(values) for values in accuracies.values()]
        axes.plot(list(accuracies), means, marker="o", ms=6, mec=PAPER, mew=0.8, zorder=4, **style)
        handles.append((family.label, Line2D([], [], **style)))
    if not handles:
        return False
    if len(families) == 1:
        _draw_grades(axes, families[0])
    gammas = sorted({gamma for family in families for gamma in family.groups})
    axes.set_xticks(gammas, [gamma_name(gamma, families[0].n) for gamma in gammas])
    axes.set_xlabel("gamma: SFT if at most this share of the rollouts is right")
    axes.set_ylabel("right answers")
    accuracy_axis(axes)
    title_and_legend(axes, "Held-out accuracy after training", handles if len(handles) > 1 else [])
    return True


def draw_sft_share(axes: Axes, families: Sequence[GammaFamily]) -> bool:
    """Share of questions sent to SFT along the steps: one line per gamma, darker for a larger one.

    Returns False, with nothing drawn, if no run records it.
    """
    shades = LinearSegmentedColormap.from_list("gamma", GAMMA_COLOURS)
    gammas = sorted({gamma for family in families for gamma in family.groups})
    colours = {gamma: to_hex(shades(i / max(1, len(gammas) - 1))) for i, gamma in enumerate(gammas)}
    last = 0
    for index, family in enumerate(families):
        for gamma, group in family.groups.items():
            curve = group.curve(SFT_SHARE.numerator, SFT_SHARE.denominator)
            if len(curve.steps):
                dash = DASHES[index % len(DASHES)]
                axes.plot(curve.steps, curve.values(curve.window), color=colours[gamma], linestyle=dash, lw=2.2)
                last = max(last, int(curve.steps[-1]))
    if not last:
        return False
    handles: list[Handle] = [
        (f"gamma {gamma_name(gamma, families[0].n)}", Line2D([], [], color=colour, lw=2.2))
        for gamma, colour in colours.items()
    ]
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel(SFT_SHARE.unit)
    step_axis(axes, last)
    title_and_legend(axes, SFT_SHARE.title, handles)
    return True


def gamma_name(gamma: float, n: int) -> str:
    """Gamma as a count of n rollouts where it is one: 0.125 of 8 is "1/8"."""
    return f"{round(gamma * n)}/{n}" if np.isclose(gamma * n, round(gamma * n)) else f"{gamma:.3g}"


def _rollouts(group: RunGroup) -> int:
    rollout = group.runs[0].config.get("rollout")
    return rollout.get("n", 8) if isinstance(rollout, dict) else 8


def _final_accuracies(family: GammaFamily, grade: str | None = None) -> dict[float, list[float]]:
    """By gamma, the accuracy at the last evaluation of each run that was evaluated before that, too.

    grade: None for all questions.
    """
    found = {}
    for gamma, group in family.groups.items():
        last = [run.evaluations[-1] for run in group.runs if len(run.evaluations) > 1]
        values = [each.accuracy if grade is None else each.accuracy_of(grade) for each in last]
        known = [value for value in values if value is not None]
        if known:
            found[gamma] = known
    return found


def _draw_grades(axes: Axes, family: GammaFamily) -> None:
    """One thin line per grade, named at its end; the line of all questions is drawn already."""
    runs = [run for group in family.groups.values() for run in group.runs if run.evaluations]
    ends = []
    for index, grade in enumerate(grades_of(run.evaluations[-1] for run in runs)):
        colour = GRADE_COLOURS[index % len(GRADE_COLOURS)]
        means = {gamma: statistics.fmean(values) for gamma, values in _final_accuracies(family, grade).items()}
        if means:
            axes.plot(list(means), list(means.values()), color=colour, lw=1.4, marker="o", ms=3, zorder=3)
            ends.append((means[max(means)], grade, colour))
    if ends:
        overall = _final_accuracies(family)
        ends.append((statistics.fmean(overall[max(overall)]), ALL, INK))
        label_ends(axes, ends)
