"""Quantities along the steps, as lines.

One run: a thin line of each step's own value, and a thick smoothed one. Several runs of a group: a thin smoothed line
for each run, and a thick one for their sum. A smoothed value is a ratio of sums over a window of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hpt.report.panels.axes import (
    PERCENT,
    PLAIN,
    Handle,
    group_styles,
    last_step,
    marker_size,
    start_at_zero,
    step_axis,
    title_and_legend,
)
from hpt.report.runs import RunGroup
from hpt.report.style import PAPER, SKIPPED

_SHORT = 15  # steps up to which a line shows a dot at each step


@dataclass(frozen=True)
class Quantity:
    """A number along the steps: the ratio of two keys of metrics.jsonl, or the value of one key."""

    title: str
    unit: str
    numerator: str
    denominator: str | None
    percent: bool = False

    @property
    def keys(self) -> str:
        return self.numerator if self.denominator is None else f"{self.numerator} and {self.denominator}"


REWARD = Quantity("Reward", "mean reward of the rollouts", "reward/sum", "reward/count")
SFT_SHARE = Quantity("Questions sent to SFT", "share of questions", "gate/sft", "gate/questions", percent=True)
OFF_POLICY = Quantity("Off-policy rows", "share of rows", "train/rows_off_policy", "train/rows", percent=True)
ENTROPY = Quantity("Entropy", "nats per token", "entropy/sum", "entropy/count")
LENGTH = Quantity("Response length", "tokens per rollout", "response/length_sum", "response/count")
TRUNCATED = Quantity("Truncated rollouts", "share of rollouts", "response/truncated", "response/count", percent=True)
GRAD_NORM = Quantity("Gradient norm", "before clipping", "train/grad_norm", None)
MISMATCH = Quantity(
    "Rollout-trainer mismatch", "KL, nats per token", "rollout/mismatch_kl_sum", "rollout/mismatch_tokens"
)
CLIP_SHARE = Quantity("Clipped tokens", "share of tokens", "clip/count", "clip/tokens", percent=True)


def draw_quantity(axes: Axes, groups: Sequence[RunGroup], quantity: Quantity, *, legend: bool = True) -> bool:
    """Draws one line per group. Returns False, with nothing drawn, if no run records the quantity."""
    handles: list[Handle] = []
    for index, (group, colour, dash) in enumerate(group_styles(groups)):
        total = group.curve(quantity.numerator, quantity.denominator)
        if not len(total.steps):
            continue
        for run in group.runs:
            curve = run.curve(quantity.numerator, quantity.denominator)
            window = curve.window if len(group.runs) > 1 else 1
            axes.plot(curve.steps, curve.values(window), color=colour, lw=0.9, alpha=0.4)
        short, size = len(total.steps) <= _SHORT, marker_size(index, len(groups))
        marks: dict[str, Any] = {"marker": "o", "ms": size, "mec": PAPER, "mew": 0.8, "clip_on": False} if short else {}
        axes.plot(total.steps, total.values(total.window), color=colour, linestyle=dash, lw=2.2, zorder=4, **marks)
        handles.append((group.label, Line2D([], [], color=colour, linestyle=dash, lw=2.2)))
    if not handles:
        return False
    axes.yaxis.set_major_formatter(PERCENT if quantity.percent else PLAIN)
    axes.set_ylabel(quantity.unit)
    start_at_zero(axes)
    step_axis(axes, last_step(groups))
    title_and_legend(axes, quantity.title, handles if legend and len(groups) > 1 else [])
    return True


def draw_skipped(axes: Axes, groups: Sequence[RunGroup]) -> int:
    """Marks the steps with a skipped update at the bottom of the axes. Returns how many updates were skipped."""
    runs = [run for group in groups for run in group.runs]
    steps = [record["step"] for run in runs for record in run.metrics if record.get("train/skipped")]
    axes.plot(steps, np.zeros(len(steps)), "x", color=SKIPPED, ms=6, mew=1.6, clip_on=False, zorder=5)
    return int(sum(run.total("train/skipped") for run in runs))
