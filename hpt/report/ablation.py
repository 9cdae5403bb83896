"""The gate's threshold gamma against what it does, drawn where runs differ in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.lines import Line2D

from hpt.report.panels import GRADE_COLOURS, PERCENT, SFT_SHARE, accuracy_of, label_ends, legend_above
from hpt.report.runs import Group
from hpt.report.style import DASHES, GAMMA_COLOURS, INK, PAPER, method_colours, step_axis

GAMMA = "gate.gamma"


@dataclass(frozen=True)
class Family:
    """Groups that differ in gamma alone, by gamma. n: rollouts a question."""

    label: str
    groups: dict[float, Group]
    n: int


def gamma_families(groups: Sequence[Group]) -> list[Family]:
    """Every family of at least two gammas, these as shares of the rollouts."""
    found: dict[str, dict[float, Group]] = {}
    for group in groups:
        config = group.runs[0].config
        gate = config.get("gate")
        if GAMMA in group.settings and isinstance(gate, dict) and gate.get("kind", "switch") == "switch":
            others = [f"{key}={value}" for key, value in group.settings.items() if key != GAMMA]
            gamma = gate.get("gamma", 0)
            share = gamma / _rollouts(group) if isinstance(gamma, int) else gamma
            found.setdefault(", ".join([group.method, *others]), {})[share] = group
    return [
        Family(label, dict(sorted(members.items())), _rollouts(next(iter(members.values()))))
        for label, members in found.items()
        if len(members) > 1
    ]


def draw_final_accuracy(axes: Axes, families: Sequence[Family]) -> bool:
    """Accuracy at the last evaluation by gamma: a dot a run, a line through the means, whiskers of one std.

    Of a single family also the means of each grade. False, with nothing drawn, where no run has been evaluated.
    """
    colours = method_colours([family.label for family in families])
    handles = []
    for index, family in enumerate(families):
        colour = INK if len(families) == 1 else colours[family.label]
        style: dict[str, Any] = {"color": colour, "linestyle": DASHES[index % len(DASHES)], "lw": 2.2}
        points = _finals(family, "all")
        if not points:
            continue
        for gamma, values in points.items():
            axes.plot([gamma] * len(values), values, "o", color=colour, ms=4, alpha=0.4, mew=0)
            if len(values) > 1:
                middle, spread = statistics.fmean(values), statistics.stdev(values)
                axes.plot([gamma, gamma], [middle - spread, middle + spread], color=colour, lw=1.4)
        means = {gamma: statistics.fmean(values) for gamma, values in points.items()}
        axes.plot(list(means), list(means.values()), marker="o", ms=6, mec=PAPER, mew=0.8, zorder=4, **style)
        handles.append((family.label, Line2D([], [], **style)))
    if not handles:
        return False
    if len(families) == 1:
        _draw_grades(axes, families[0])
    gammas = sorted({gamma for family in families for gamma in family.groups})
    axes.set_xticks(gammas, [gamma_name(gamma, families[0].n) for gamma in gammas])
    axes.set_xlabel("gamma: SFT where at most this share of the rollouts is right")
    axes.set_ylabel("right answers")
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylim(0, min(1.0, axes.dataLim.y1 * 1.06) or 1.0)
    rows = legend_above(axes, handles) if len(handles) > 1 else 0
    axes.set_title("Held-out accuracy after training", pad=9 + 16 * rows)
    return True


def draw_sft_share(axes: Axes, families: Sequence[Family]) -> bool:
    """Share of the questions sent to SFT along the steps: a line a gamma, darker with a larger one."""
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
    handles = [
        (f"gamma {gamma_name(gamma, families[0].n)}", Line2D([], [], color=colour, lw=2.2))
        for gamma, colour in colours.items()
    ]
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel(SFT_SHARE.unit)
    step_axis(axes, last)
    axes.set_title(SFT_SHARE.title, pad=9 + 16 * legend_above(axes, handles))
    return True


def gamma_name(gamma: float, n: int) -> str:
    """As a count of n rollouts where it is one: 0.125 of 8 is "1/8"."""
    return f"{round(gamma * n)}/{n}" if np.isclose(gamma * n, round(gamma * n)) else f"{gamma:.3g}"


def _rollouts(group: Group) -> int:
    rollout = group.runs[0].config.get("rollout")
    return rollout.get("n", 8) if isinstance(rollout, dict) else 8


def _finals(family: Family, grade: str) -> dict[float, list[float]]:
    """Accuracy at each run's last evaluation, by gamma."""
    values = {
        gamma: [accuracy_of(run.evaluations[-1], grade) for run in group.runs if len(run.evaluations) > 1]
        for gamma, group in family.groups.items()
    }
    known = {gamma: [value for value in found if value is not None] for gamma, found in values.items()}
    return {gamma: found for gamma, found in known.items() if found}


def _draw_grades(axes: Axes, family: Family) -> None:
    runs = [run for group in family.groups.values() for run in group.runs if run.evaluations]
    grades = list(dict.fromkeys(grade for run in runs for grade in run.evaluations[-1].grades))
    ends = []
    for index, grade in enumerate(grades):
        colour = GRADE_COLOURS[index % len(GRADE_COLOURS)]
        means = {gamma: statistics.fmean(values) for gamma, values in _finals(family, grade).items()}
        if means:
            axes.plot(list(means), list(means.values()), color=colour, lw=1.4, marker="o", ms=3, zorder=3)
            ends.append((means[max(means)], grade, colour))
    if ends:
        overall = _finals(family, "all")
        ends.append((statistics.fmean(overall[max(overall)]), "all", INK))
        label_ends(axes, ends)
