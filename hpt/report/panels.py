"""What the figures are drawn from: lines of quotients, stacked shares, held-out accuracy, time, each on given axes.

Lines follow one rule. One run: a thin line of the steps' own values, a thick one of the sums over a window. Several
runs of a group: a thin smoothed line for each, a thick one of their sums together.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from hpt.report.runs import Evaluation, Group, Run
from hpt.report.style import (
    DASHES,
    GATE_COLOURS,
    GRADE_COLOURS,
    INK,
    MUTED,
    PAPER,
    PHASE_COLOURS,
    SKIPPED,
    VERDICT_COLOURS,
    method_colours,
    step_axis,
)

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g}%")
PLAIN = FuncFormatter(lambda value, _: f"{value:.3g}")
_ROW_CHARACTERS = 84  # that fit beside each other in a figure's width, six of them for a legend's handle
_SHORT = 15  # points up to which a line shows each of them


@dataclass(frozen=True)
class Quantity:
    """A number along the steps: the quotient of two keys of metrics.jsonl, or one key's own value."""

    name: str
    title: str
    unit: str
    numerator: str
    denominator: str | None
    percent: bool = False

    @property
    def keys(self) -> str:
        return self.numerator if self.denominator is None else f"{self.numerator} and {self.denominator}"


REWARD = Quantity("reward", "Reward", "mean score of the rollouts", "reward/sum", "reward/count")
SFT_SHARE = Quantity("sft_share", "Questions sent to SFT", "share of questions", "gate/sft", "gate/questions", True)
OFF_POLICY = Quantity("off_policy", "Off-policy rows", "share of rows", "train/rows_off_policy", "train/rows", True)
ENTROPY = Quantity("entropy", "Entropy", "nats a token", "entropy/sum", "entropy/count")
LENGTH = Quantity("response_length", "Response length", "tokens a rollout", "response/length_sum", "response/count")
TRUNCATED = Quantity(
    "truncated",
    "Rollouts cut at the length limit",
    "share of rollouts",
    "response/truncated",
    "response/count",
    True,
)
GRAD_NORM = Quantity("grad_norm", "Gradient norm", "before clipping", "train/grad_norm", None)
MISMATCH = Quantity(
    "mismatch", "Rollout-trainer mismatch", "KL, nats a token", "rollout/mismatch_kl_sum", "rollout/mismatch_tokens"
)
CLIP_SHARE = Quantity("clip_share", "Clipped tokens", "share of tokens", "clip/count", "clip/tokens", True)


def group_styles(groups: Sequence[Group]) -> list[tuple[Group, str, Any]]:
    """Each group with its colour and dash pattern, which are the same in every panel."""
    colours = method_colours([group.label for group in groups])
    return [(group, colours[group.label], DASHES[i % len(DASHES)]) for i, group in enumerate(groups)]


def draw_quantity(axes: Axes, groups: Sequence[Group], quantity: Quantity, *, legend: bool = True) -> bool:
    """One line a group; False, with nothing drawn, where no run records the quantity."""
    drawn = []
    for group, colour, dash in group_styles(groups):
        total = group.curve(quantity.numerator, quantity.denominator)
        if not len(total.steps):
            continue
        for run in group.runs:
            curve = run.curve(quantity.numerator, quantity.denominator)
            window = curve.window if len(group.runs) > 1 else 1
            axes.plot(curve.steps, curve.values(window), color=colour, lw=0.9, alpha=0.4)
        short = len(total.steps) <= _SHORT
        marks: dict[str, Any] = {"marker": "o", "ms": 5, "mec": PAPER, "mew": 0.8, "clip_on": False} if short else {}
        axes.plot(total.steps, total.values(total.window), color=colour, linestyle=dash, lw=2.2, zorder=4, **marks)
        drawn.append((group.label, Line2D([], [], color=colour, linestyle=dash, lw=2.2)))
    if not drawn:
        return False
    axes.yaxis.set_major_formatter(PERCENT if quantity.percent else PLAIN)
    axes.set_ylabel(quantity.unit)
    _finish_lines(axes, groups, quantity.title, drawn if legend else [])
    return True


def draw_skipped(axes: Axes, groups: Sequence[Group]) -> int:
    """Marks the steps with a skipped update on the axes' floor; how many updates were skipped."""
    runs = [run for group in groups for run in group.runs]
    steps = [record["step"] for run in runs for record in run.metrics if record.get("train/skipped")]
    axes.plot(steps, np.zeros(len(steps)), "x", color=SKIPPED, ms=6, mew=1.6, clip_on=False, zorder=5)
    return int(sum(run.total("train/skipped") for run in runs))


def draw_gates(axes: Axes, group: Group, title: str, *, columns: int = 4, sft_line: bool = False) -> bool:
    """Questions by how many of their rollouts are right, stacked to 100%; a line of the share sent to SFT over it."""
    named = [(f"gate/{name}", f"{name} right", colour) for name, colour in GATE_COLOURS.items()]
    handles = _draw_stack(axes, group, named)
    if not handles:
        return False
    sent = group.curve(SFT_SHARE.numerator, SFT_SHARE.denominator)
    if sft_line and len(sent.steps):
        axes.plot(sent.steps, sent.values(sent.window), color=INK, lw=2, zorder=4)
        handles.append(("sent to SFT", Line2D([], [], color=INK, lw=2)))
    axes.set_ylabel("share of questions")
    axes.set_title(title, pad=9 + 16 * legend_above(axes, handles, columns))
    return True


def draw_verdicts(axes: Axes, group: Group, title: str, *, columns: int = 4) -> bool:
    """The verifier's outcomes stacked to 100%, with the run's count of each in the legend."""
    totals = {name: sum(run.total(f"verify/{name}") for run in group.runs) for name in VERDICT_COLOURS}
    named = [(f"verify/{name}", f"{name} ({totals[name]:,.0f})", colour) for name, colour in VERDICT_COLOURS.items()]
    handles = _draw_stack(axes, group, named)
    if not handles:
        return False
    axes.set_ylabel("share of rollouts")
    axes.set_title(title, pad=9 + 16 * legend_above(axes, handles, columns))
    return True


def draw_accuracy(axes: Axes, groups: Sequence[Group], *, legend: bool = True) -> bool:
    """Held-out accuracy along the steps: of one group overall and by grade, of several overall."""
    drawn = []
    for group, colour, dash in group_styles(groups):
        total = group.curve("eval/correct", "eval/count")
        if not len(total.steps):
            continue
        style = {"color": colour if len(groups) > 1 else INK, "linestyle": dash, "lw": 2.2, "marker": "o", "ms": 4.5}
        for run in group.runs if len(group.runs) > 1 else ():
            curve = run.curve("eval/correct", "eval/count")
            axes.plot(curve.steps, curve.values(), color=style["color"], lw=0.9, alpha=0.4)
        axes.plot(total.steps, total.values(), mec=PAPER, mew=0.8, clip_on=False, zorder=4, **style)
        drawn.append((group.label, Line2D([], [], **style)))
    if not drawn:
        return False
    if len(groups) == 1:
        _draw_grades(axes, groups[0])
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylabel("right answers")
    _finish_lines(axes, groups, "Held-out accuracy", drawn if legend else [])
    return True


def draw_before_after(axes: Axes, run: Run) -> bool:
    """Accuracy of each grade at the first and the last evaluation, as a dot moving along a line."""
    if not run.evaluations:
        return False
    before, after = run.evaluations[0], run.evaluations[-1]
    rows = list(reversed([*after.grades, "all"]))
    for row, grade in enumerate(rows):
        start, end = (accuracy_of(evaluation, grade) for evaluation in (before, after))
        if start is None or end is None:
            continue
        colour = INK if grade == "all" else _grade_colour(after.grades, grade)
        axes.plot([start, end], [row, row], color=colour, lw=3, alpha=0.35, solid_capstyle="butt", zorder=2)
        axes.plot(start, row, "o", ms=8, mfc=PAPER, mec=colour, mew=1.8, zorder=3)
        axes.plot(end, row, "o", ms=8.5, color=colour, zorder=4)
        side = 1 if end >= start else -1
        axes.annotate(
            f"{start:.0%} → {end:.0%}",
            (max(start, end), row),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=colour if side > 0 else MUTED,
            weight="bold" if grade == "all" else "normal",
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(-0.02, 1.18)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.spines["bottom"].set_visible(False)
    axes.set_title(f"Held-out accuracy by grade, step {before.step} → {after.step}")
    return True


def draw_by_grade(axes: Axes, groups: Sequence[Group]) -> bool:
    """Final accuracy of each grade: a bar a group (mean over its runs), a whisker from the worst run to the best."""
    trained = [
        (colour, group.label, evaluations)
        for group, colour, _ in group_styles(groups)
        if (evaluations := [run.evaluations for run in group.runs if run.evaluations])
    ]
    if not trained:
        return False
    grades = [*dict.fromkeys(g for _, _, runs in trained for run in runs for g in run[-1].grades), "all"]
    width = 0.8 / len(trained)
    for index, (colour, _, runs) in enumerate(trained):
        for column, grade in enumerate(grades):
            first, final = (
                [value for run in runs if (value := accuracy_of(run[at], grade)) is not None] for at in (0, -1)
            )
            if not first or not final:
                continue
            x = column + (index - (len(trained) - 1) / 2) * width
            axes.bar(x, np.mean(final), width * 0.86, color=colour)
            axes.plot([x - width * 0.43, x + width * 0.43], [np.mean(first)] * 2, color=INK, lw=1.6, zorder=4)
            if len(final) > 1:
                axes.plot([x, x], [min(final), max(final)], color=MUTED, lw=1.4, zorder=3)
    axes.set_xticks(range(len(grades)), grades)
    axes.tick_params(axis="x", labelcolor=INK)
    axes.yaxis.set_major_formatter(PERCENT)
    _from_zero(axes)
    handles: list[tuple[str, Line2D | Patch]] = [(label, Patch(color=colour)) for colour, label, _ in trained]
    handles.append(("before training", Line2D([], [], color=INK, lw=1.6)))
    axes.set_title("Held-out accuracy by grade after training", pad=9 + 16 * legend_above(axes, handles))
    return True


def draw_time(axes: Axes, runs: Sequence[Run]) -> bool:
    """Seconds by phase: a bar a phase for one run, a stacked bar a run for several."""
    if not any(run.phases for run in runs):
        return False
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlabel("seconds")
    if len(runs) == 1:
        phases = runs[0].phases
        whole = sum(phases.values()) or 1.0
        for row, (phase, seconds) in enumerate(phases.items()):
            axes.barh(row, seconds, 0.62, color=PHASE_COLOURS.get(phase, MUTED))
            text = f" {seconds:,.3g} s, {seconds / whole:.0%}"
            axes.annotate(text, (seconds, row), xytext=(3, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(phases)), list(phases))
        axes.set_xlim(0, max(phases.values()) * 1.25 or 1.0)
    else:
        names = sorted(
            {phase for run in runs for phase in run.phases},
            key=lambda name: [*PHASE_COLOURS, name].index(name),
        )
        for row, run in enumerate(runs):
            left = 0.0
            for phase in names:
                seconds = run.phases.get(phase, 0.0)
                axes.barh(row, seconds, 0.7, left=left, color=PHASE_COLOURS.get(phase, MUTED))
                left += seconds
        axes.set_yticks(range(len(runs)), [run.name for run in runs])
    axes.invert_yaxis()
    rows = 0
    if len(runs) > 1:
        rows = legend_above(axes, [(name, Patch(color=PHASE_COLOURS.get(name, MUTED))) for name in names], columns=5)
    axes.set_title("Time by phase", pad=9 + 16 * rows)
    return True


def accuracy_of(evaluation: Evaluation, grade: str) -> float | None:
    return evaluation.accuracy if grade == "all" else evaluation.of_grade(grade)


def legend_above(axes: Axes, handles: Sequence[tuple[str, Line2D | Patch]], columns: int = 4) -> int:
    """A legend between title and axes, where it hides nothing; how many rows it takes."""
    longest = max(len(label) for label, _ in handles)
    columns = max(1, min(columns, len(handles), _ROW_CHARACTERS // (longest + 6)))
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
    return -(-len(handles) // columns)


def _draw_stack(axes: Axes, group: Group, named: Sequence[tuple[str, str, str]]) -> list[tuple[str, Line2D | Patch]]:
    curves = group.shares([key for key, _, _ in named])
    steps = curves[0].steps
    if not len(steps) or not curves[0].denominators.any():
        return []
    values = np.nan_to_num([curve.values(curve.window) for curve in curves])
    if len(steps) == 1:  # an area needs two points
        steps, values = np.array([steps[0] - 0.5, steps[0] + 0.5]), np.repeat(values, 2, axis=1)
    axes.stackplot(steps, values, colors=[colour for _, _, colour in named], lw=0)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.grid(visible=False)
    step_axis(axes, _last_step([group]))
    return [(label, Patch(color=colour)) for _, label, colour in named]


def _draw_grades(axes: Axes, group: Group) -> None:
    grades = list(dict.fromkeys(g for run in group.runs for evaluation in run.evaluations for g in evaluation.grades))
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
        ends.append((total.values()[-1], "all", INK))
        label_ends(axes, ends)


def _grade_colour(grades: Collection[str], grade: str) -> str:
    return GRADE_COLOURS[list(grades).index(grade) % len(GRADE_COLOURS)]


def label_ends(axes: Axes, ends: list[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Names the lines at the right edge, pushed apart where they would overlap."""
    low, high = 0.0, max(1e-9, axes.dataLim.y1, *(value for value, _, _ in ends)) * 1.06
    placed = -np.inf
    for value, text, colour in sorted(ends):
        placed = max((value - low) / (high - low), placed + gap)
        axes.annotate(
            text,
            (1.015, placed),
            xycoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9,
            weight="bold" if text == "all" else "normal",
        )


def _finish_lines(axes: Axes, groups: Sequence[Group], title: str, drawn: Sequence[tuple[str, Line2D | Patch]]) -> None:
    _from_zero(axes)
    step_axis(axes, _last_step(groups))
    rows = legend_above(axes, drawn) if drawn and len(groups) > 1 else 0
    axes.set_title(title, pad=9 + 16 * rows)


def _from_zero(axes: Axes) -> None:
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if np.isfinite([low, high]).all() and low >= 0:
        axes.set_ylim(0, high * 1.06 or 1.0)


def _last_step(groups: Sequence[Group]) -> int:
    return max(run.last_step for group in groups for run in group.runs)
