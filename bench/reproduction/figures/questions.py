"""Held-out questions one by one: the accuracy map, exclusive solves and forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import numpy as np
from matplotlib.axes import Axes

from ..outcomes import Outcome, by_condition
from ..task import TITLES
from .style import figure, title_of


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    conditions = {TITLES[condition]: methods for condition, methods in by_condition(outcomes).items()}
    with figure(path, 2, len(conditions), (7.5 * len(conditions), 10)) as axes:
        for column, (title, methods) in enumerate(conditions.items()):
            _map(axes[0][column], methods, f"Accuracy by question, first seed, {title}")
            _exclusive(axes[1][column], methods, f"Solved by row and not by column, {title}")


def _map(axes: Axes, methods: dict[str, list[Outcome]], title: str) -> None:
    """Columns are questions, by grade and within a grade by the start model's accuracy."""
    seed = next(iter(methods.values()))[0].trial.seed
    firsts = {method: outcomes[0] for method, outcomes in methods.items() if outcomes[0].trial.seed == seed}
    reference = next(iter(firsts.values())).evaluation
    grades = list(dict.fromkeys(answer.grade for answer in reference))
    order = sorted(
        range(len(reference)), key=lambda place: (grades.index(reference[place].grade), -reference[place].correct)
    )
    shares = np.array(
        [[o.evaluation[place].correct / o.evaluation[place].n for place in order] for o in firsts.values()]
    )
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="none")
    axes.figure.colorbar(image, ax=axes, label="share of right samples", pad=0.01)
    axes.set_yticks(range(len(firsts)), [title_of(method) for method in firsts])
    names = [grade.replace(" and ", "\nand ") for grade in grades]
    sizes = [sum(answer.grade == grade for answer in reference) for grade in grades]
    ends = np.cumsum(sizes)
    axes.set_xticks([end - size / 2 - 0.5 for end, size in zip(ends, sizes, strict=True)], names)
    for end in ends[:-1]:
        axes.axvline(end - 0.5, color="white", lw=2)
    axes.grid(False)
    axes.set_title(title)


def _exclusive(axes: Axes, methods: dict[str, list[Outcome]], title: str) -> None:
    """Means over seeds. The start model's row is what each method has forgotten."""
    solved = {method: {o.trial.seed: o.solved for o in outcomes} for method, outcomes in methods.items()}
    counts = np.full((len(solved), len(solved)), np.nan)
    for row, ours in enumerate(solved.values()):
        for column, theirs in enumerate(solved.values()):
            both = ours.keys() & theirs.keys()
            if row != column and both:
                counts[row, column] = mean(len(ours[seed] - theirs[seed]) for seed in both)
                axes.annotate(f"{counts[row, column]:.1f}", (column, row), ha="center", va="center", fontsize=7)
    axes.imshow(counts, aspect="auto", cmap="Oranges", vmin=0, vmax=2 * np.nanmax(counts, initial=1))
    names = [title_of(method) for method in solved]
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.grid(False)
    axes.set_title(title)
