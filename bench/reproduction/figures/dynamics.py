"""What happens during training: held-out accuracy, reward, share of offline data, entropy and length by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes

from ..outcomes import Outcome, by_condition, demonstrations_of
from ..task import TITLES
from .style import IN_LINES, figure, line_style

DEMONSTRATED = "demonstrated"
PANELS = {
    "eval/accuracy": "Held-out accuracy",
    "reward/mean": "Reward",
    DEMONSTRATED: "Share trained with a demonstration",
    "entropy/mean": "Entropy, nats per token trained on",
    "response/length": "Tokens of a rollout",
}
POINTS = 16
"""Of a curve: each is the mean over as many steps, drawn at the last of them. A single batch says little."""


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    conditions = {TITLES[condition]: methods for condition, methods in by_condition(outcomes).items()}
    with figure(path, len(PANELS), len(conditions), (6.5 * len(conditions), 14)) as axes:
        for column, (title, methods) in enumerate(conditions.items()):
            for row, (metric, name) in enumerate(PANELS.items()):
                _curves(axes[row][column], methods, metric)
                axes[row][column].set_title(f"{name}, {title}")
            axes[-1][column].set_xlabel("step")
            axes[2][column].legend(ncols=2, handlelength=3, loc="center right")  # where it hides no line


def _curves(axes: Axes, methods: dict[str, list[Outcome]], metric: str) -> None:
    """The mean over seeds, and between the lowest and the highest seed."""
    for method in [method for method in methods if method in IN_LINES]:
        by_step: dict[int, list[float]] = {}
        for outcome in methods[method]:
            for step, value in _smoothed(outcome, metric):
                by_step.setdefault(step, []).append(value)
        steps = sorted(by_step)
        axes.plot(steps, [mean(by_step[step]) for step in steps], label=method, **line_style(method))
        low, high = ([choose(by_step[step]) for step in steps] for choose in (min, max))
        axes.fill_between(steps, low, high, color=line_style(method)["color"], alpha=0.12, lw=0)


def _smoothed(outcome: Outcome, metric: str) -> list[tuple[int, float]]:
    """Evaluations as they are; other metrics as means over a few steps. Steps without a rollout have none."""
    if metric == DEMONSTRATED:
        trained = [line for line in outcome.metrics if line.get("gate/questions")]
        points = [(line["step"], demonstrations_of(line) / line["gate/questions"]) for line in trained]
    else:
        points = [(line["step"], line[metric]) for line in outcome.metrics if metric in line]
    if metric == "response/length":
        points = [(step, value) for step, value in points if value]
    if metric.startswith("eval/"):
        return points
    steps = outcome.metrics[-1]["step"]
    width = max(1, round(steps / POINTS))
    groups: dict[int, list[float]] = {}
    for step, value in points:
        groups.setdefault(min(steps, math.ceil(step / width) * width), []).append(value)
    return [(last, mean(values)) for last, values in groups.items()]
