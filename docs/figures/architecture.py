"""Draws docs/figures/architecture.svg: python docs/figures/architecture.py

One picture of the rooms of `hpt` and `upge`, and of what flows between them in a training step.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

INK, GREY, STEP, LOSS, OTHER = "#222222", "#777777", "#dbe9f6", "#fde4c8", "#f2f2f2"

FLOW = {
    "data": ["questions,", "prompt tokens"],
    "rollout": ["n responses", "per question"],
    "verify": ["a verdict on", "each response"],
    "method": ["gate, advantages,", "token rows"],
    "model": ["policy, critic,", "reference model"],
    "optim": ["one update", "of the weights"],
}
"""The rooms of a training step, in order, with what each one makes."""

PASSED_ON = ["prompts", "rollouts", "verdicts", "rows", "loss"]
AROUND = {
    "timing": ["predicted time,", "what would help"],
    "memory": ["predicted peak,", "what would fit"],
    "evaluation": ["avg@n, pass@k,", "exact paired tests"],
    "records": ["metrics, rollouts,", "evaluations"],
}
"""Rooms between the training loop and the rooms of a step."""

BANDS = {
    "commands": "train   eval   data   plan   report   ...",
    "api": "hpt.train, hpt.evaluate, hpt.plan, hpt.Run",
    "training": "Trainer.step: Algorithm 1, top to bottom",
    "report": "figures, one page",
    "demos": "sums, smollm2",
    "config": "recipes and rules: one typed Config",
    "support": "errors, seeds, devices, ranks",
}


def main() -> None:
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "hpt", "font.family": "sans-serif"}
    figure = Figure(figsize=(11, 6.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 110), ylim=(0, 62))
    axes.axis("off")
    draw(axes)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


def draw(axes: Axes) -> None:
    """From the command line down, in the order of the layers."""
    band(axes, "commands", (2, 56, 52, 4.5))
    band(axes, "api", (56, 56, 52, 4.5))
    band(axes, "training", (2, 49.5, 48, 4.5))
    band(axes, "report", (52, 49.5, 27, 4.5))
    band(axes, "demos", (81, 49.5, 27, 4.5))
    for number, (name, lines) in enumerate(AROUND.items()):
        room(axes, (2 + number * 26.8, 39, 25.6, 8.5), name, lines, OTHER)

    text(axes, 4, 35.6, "What a step calls, from left to right", align="left", color=GREY)
    width, gap, y, height = 13, 4.6, 23.5, 8.5
    lefts = [4 + number * (width + gap) for number in range(len(FLOW))]
    for left, (name, lines) in zip(lefts, FLOW.items(), strict=True):
        room(axes, (left, y, width, height), name, lines, STEP)
    for left, passed in zip(lefts, PASSED_ON, strict=False):
        arrow(axes, (left + width, y + height / 2), (left + width + gap, y + height / 2))
        text(axes, left + width + gap / 2, y - 1.9, passed, color=GREY)
    rollout, model, optim = (lefts[number] + width / 2 for number in (1, 4, 5))
    axes.plot([optim, optim, rollout], [y + height, 34, 34], color=INK, linewidth=1)
    arrow(axes, (rollout, 34), (rollout, y + height))
    text(axes, (rollout + optim) / 2, 35.6, "the new weights sample the next rollouts", color=GREY)

    band(axes, "config", (2, 14.5, 48, 4.5))
    band(axes, "support", (2, 8, 48, 4.5))
    lines = ["the fused loss, without logits", "backends: torch, triton, reference"]
    room(axes, (60, 8, 48, 11), "upge  (kernels/)", lines, LOSS)
    arrow(axes, (model, 19), (model, y))
    text(axes, 55, 3.5, "A room imports only rooms below it in the list of layers; upge never imports hpt.", color=GREY)


def box(axes: Axes, place: tuple[float, float, float, float], color: str) -> None:
    """place: x, y, width, height."""
    x, y, width, height = place
    style = "round,pad=0,rounding_size=1"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, edgecolor=INK, linewidth=0.8))


def room(axes: Axes, place: tuple[float, float, float, float], name: str, lines: list[str], color: str) -> None:
    box(axes, place, color)
    x, y, width, height = place
    text(axes, x + width / 2, y + height - 1.9, name, bold=True)
    for number, line in enumerate(lines):
        text(axes, x + width / 2, y + height - 4.4 - 2.3 * number, line)


def band(axes: Axes, name: str, place: tuple[float, float, float, float]) -> None:
    box(axes, place, OTHER)
    x, y, _, height = place
    text(axes, x + 2, y + height / 2, name, bold=True, align="left")
    text(axes, x + 12, y + height / 2, BANDS[name], align="left")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0})


def text(
    axes: Axes, x: float, y: float, words: str, *, bold: bool = False, align: str = "center", color: str = INK
) -> None:
    axes.text(
        x, y, words, ha=align, va="center", color=color, fontsize=11 if bold else 9, weight="bold" if bold else "normal"
    )


if __name__ == "__main__":
    main()
