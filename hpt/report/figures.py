"""The catalogue of a report's figures: for each, its panels, its caption, and what is missing if it cannot be drawn."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hpt.report.conditions import Conditions
from hpt.report.panels.ablation import draw_final_accuracy, draw_sft_share, gamma_families
from hpt.report.panels.accuracy import draw_accuracy, draw_before_after, draw_by_grade
from hpt.report.panels.axes import PERCENT, draw_missing
from hpt.report.panels.phases import draw_phases
from hpt.report.panels.quantities import (
    CLIP_SHARE,
    ENTROPY,
    GRAD_NORM,
    LENGTH,
    MISMATCH,
    OFF_POLICY,
    REWARD,
    SFT_SHARE,
    TRUNCATED,
    Quantity,
    draw_quantity,
    draw_skipped,
)
from hpt.report.panels.questions import draw_pass_at_k, draw_question_map
from hpt.report.panels.stacks import draw_gate_counts, draw_verdicts, has_gate_counts, has_verdicts
from hpt.report.questions import comparable_evaluations, question_map
from hpt.report.runs import RunGroup, held_out_conditions


@dataclass(frozen=True)
class Layout:
    """How figures fill a page. width, height: of one panel, in inches. columns: the most panels side by side."""

    width: float = 6.6
    height: float = 3.7
    columns: int = 3


WIDE = Layout()
NARROW = Layout(4.1, 3.5, columns=1)
"""For a phone, whose page scales a wide figure down until its letters are too small."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption. wide: it takes the full width of the page."""

    figure: Figure
    caption: str
    wide: bool = False


Drawer = Callable[[Sequence[RunGroup], Layout], Drawing | str]
"""Draws a figure of some groups of runs, or says which numbers they lack for it."""


def draw_figures(groups: Sequence[RunGroup], layout: Layout = WIDE) -> tuple[dict[str, Drawing], list[str]]:
    """All figures that the runs have numbers for, by name, and a note on each of the others."""
    drawings: dict[str, Drawing] = {}
    notes: list[str] = []
    for name, draw in _DRAWERS.items():
        result = draw(groups, layout)
        if isinstance(result, Drawing):
            drawings[name] = result
        else:
            notes.append(result)
    return drawings, notes


def _quantity(quantity: Quantity, caption: str, *, only_if_any: bool = False) -> Drawer:
    """only_if_any: it is drawn only if its numerator is not 0 in all steps."""

    def draw(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
        figure, axes = _single(layout)
        if not draw_quantity(axes, groups, quantity):
            return f"{quantity.title}: no step records {quantity.keys}."
        if only_if_any and not any(run.total(quantity.numerator) for group in groups for run in group.runs):
            return f"{quantity.title}: none in any step."
        return Drawing(figure, caption)

    return draw


def _grad_norm(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    drawing = _quantity(GRAD_NORM, "Norm of the gradient before it is clipped.")(groups, layout)
    if isinstance(drawing, str):
        return drawing
    skipped = draw_skipped(drawing.figure.axes[0], groups)
    if not skipped:
        return drawing
    return replace(drawing, caption=f"{drawing.caption} Crosses: steps with skipped updates ({skipped} in all).")


def _gate_counts(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    counted = [group for group in groups if has_gate_counts(group)]
    if not counted:
        return "Gate counts: no step records gate/none, gate/some and gate/all."
    title = "Questions by how many of their rollouts are right"
    caption = "None right: RL has nothing to learn from. All right: no advantage, so no gradient."
    if len(groups) > 1:
        return _one_panel_per_group(counted, draw_gate_counts, title, caption, layout, columns=3)
    figure, axes = _single(layout)
    draw_gate_counts(axes, groups[0], title)
    return Drawing(figure, caption)


def _verdicts(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    verified = [group for group in groups if has_verdicts(group)]
    if not verified:
        return "Verdicts: no step records verify/correct, verify/incorrect and the like."
    title, caption = "Verdicts", "Verdicts on the rollouts; the total of each in brackets."
    if len(groups) > 1:
        return _one_panel_per_group(verified, draw_verdicts, title, caption, layout, columns=2)
    figure, axes = _single(layout)
    draw_verdicts(axes, groups[0], title)
    return Drawing(figure, caption)


def _one_panel_per_group(
    groups: Sequence[RunGroup],
    draw: Callable[..., None],
    title: str,
    caption: str,
    layout: Layout,
    *,
    columns: int,
) -> Drawing:
    """columns: of the legends."""
    figure, panels = _side_by_side(len(groups), title, layout)
    for axes, group in zip(panels, groups, strict=True):
        draw(axes, group, group.label, columns=columns)
    return Drawing(figure, caption, wide=True)


def _accuracy(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    held_out = held_out_conditions(groups)
    if not held_out:
        return "Held-out accuracy: no step records eval/correct and eval/count."
    figure, panels = _panels(len(held_out), "Held-out accuracy", layout)
    for axes, conditions in zip(panels, held_out, strict=True):
        draw_accuracy(axes, groups, conditions)
    return Drawing(figure, f"Share of right answers: {_joined(held_out)}.", wide=len(held_out) > 1)


def _accuracy_by_grade(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    runs = [run for group in groups for run in group.runs]
    if not any(len(run.evaluations) > 1 for run in runs):
        return "Held-out accuracy by grade: fewer than two evaluations, so no before and after."
    held_out = held_out_conditions(groups)
    figure, panels = _panels(len(held_out), "Held-out accuracy by grade", layout)
    if len(runs) == 1:
        draw_before_after(panels[0], runs[0])
        return Drawing(figure, f"Open dot: the first evaluation. Full dot: the last. {_joined(held_out)}.")
    for axes, conditions in zip(panels, held_out, strict=True):
        draw_by_grade(axes, groups, conditions)
    caption = (
        "Bars: mean over seeds at the last evaluation; whiskers: worst and best seed; marks: the first evaluation. "
        f"{_joined(held_out)}."
    )
    return Drawing(figure, caption, wide=len(held_out) > 1)


def _pass_at_k(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    evaluations = [each for each in comparable_evaluations(groups) if each.conditions.n > 1]
    if not evaluations:
        return "pass@k: no evaluation with several responses per question (eval.n, or hpt eval RUN --output RUN/eval)."
    figure, panels = _panels(len(evaluations), "pass@k", layout)
    captions = [
        draw_pass_at_k(axes, groups, each, f"pass@k: {each.conditions.name}")
        for axes, each in zip(panels, evaluations, strict=True)
    ]
    return Drawing(figure, " ".join(captions), wide=len(evaluations) > 1)


def _question_map(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    title = "Held-out questions during training"
    found = {group.label: question_map(group) for group in groups}
    maps = {label: each for label, each in found.items() if each is not None}
    if not maps:
        return f"{title}: no run has its evaluations question by question (eval/step-*.jsonl)."
    figure, panels = _panels(len(maps), title, layout)
    titles = list(maps) if len(maps) > 1 else [title]
    images = [draw_question_map(axes, each, own) for axes, each, own in zip(panels, maps.values(), titles, strict=True)]
    bar = figure.colorbar(images[-1], ax=panels, format=PERCENT, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # its colours are half transparent, so that seams would show in a vector drawing
    caption = "One row per question, sorted by grade; the colour is its share of right responses"
    several_seeds = any(len(group.runs) > 1 for group in groups if group.label in maps)
    caption += ", the mean over seeds" if several_seeds else ""
    caption += f". {_joined(held_out_conditions([group for group in groups if group.label in maps]))}."
    return Drawing(figure, caption, wide=len(maps) > 1)


def _gate_ablation(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    families = gamma_families(groups)
    if not families:
        return "Gate ablation: no runs that differ in gate.gamma."
    figure, (left, right) = _grid(2, layout)
    if not draw_final_accuracy(left, families):
        draw_missing(left, "Held-out accuracy", "not recorded")
    if not draw_sft_share(right, families):
        draw_missing(right, SFT_SHARE.title, "not recorded")
    caption = "Accuracy: small dots are runs, the line is their mean, whiskers are one standard deviation over seeds. "
    caption += f"{_joined(held_out_conditions(groups))}."
    return Drawing(figure, caption, wide=True)


def _time(groups: Sequence[RunGroup], layout: Layout) -> Drawing | str:
    runs = [run for group in groups for run in group.runs]
    figure = Figure(figsize=(layout.width, max(layout.height, 1.6 + 0.28 * len(runs))), layout="constrained")
    if not draw_phases(figure.add_subplot(), runs):
        return "Time by phase: no step records time/PHASE."
    return Drawing(figure, "Wall time, from the start of hpt train to its last checkpoint.")


def _joined(held_out: Sequence[Conditions]) -> str:
    """The data that a caption names."""
    return "; ".join(map(str, held_out)) if held_out else "Not evaluated"


def _panels(count: int, title: str, layout: Layout) -> tuple[Figure, list[Axes]]:
    """One panel, which has a title of its own, or several under a common one."""
    if count > 1:
        return _side_by_side(count, title, layout)
    figure, axes = _single(layout)
    return figure, [axes]


def _single(layout: Layout) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(layout.width, layout.height), layout="constrained")
    return figure, figure.add_subplot()


def _side_by_side(count: int, title: str, layout: Layout) -> tuple[Figure, list[Axes]]:
    """Several panels under one title."""
    figure, panels = _grid(count, layout)
    figure.suptitle(textwrap.fill(title, int(9 * figure.get_figwidth())), x=0.01, ha="left", weight="bold", fontsize=12)
    return figure, panels


def _grid(count: int, layout: Layout) -> tuple[Figure, list[Axes]]:
    """Several panels in rows of 2 or 3, or one below the other."""
    columns = min(layout.columns, 2 if count in (2, 4) else 3)
    rows = math.ceil(count / columns)
    width = layout.width * min(2, columns)
    figure = Figure(figsize=(width, 0.4 + 3.6 * rows), layout=ConstrainedLayoutEngine(wspace=0.06))
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


_DRAWERS: dict[str, Drawer] = {
    "reward": _quantity(
        REWARD, "Mean reward of the rollouts: the score, or the weighted sum of the rewards that the recipe lists."
    ),
    "sft_share": _quantity(SFT_SHARE, "Share of questions trained by SFT on their demonstration only."),
    "off_policy": _quantity(
        OFF_POLICY,
        "Share of the rows with a gradient that are demonstrations trained by off-policy RL.",
        only_if_any=True,
    ),
    "gate_counts": _gate_counts,
    "accuracy": _accuracy,
    "accuracy_by_grade": _accuracy_by_grade,
    "pass_at_k": _pass_at_k,
    "question_map": _question_map,
    "gate_ablation": _gate_ablation,
    "entropy": _quantity(
        ENTROPY, "Mean of -log p of the sampled tokens; without rollouts, the exact entropy on demonstrations."
    ),
    "response_length": _quantity(LENGTH, "Tokens per rollout, the end token included."),
    "truncated": _quantity(TRUNCATED, "Rollouts that reached rollout.max_tokens before they ended.", only_if_any=True),
    "grad_norm": _grad_norm,
    "mismatch": _quantity(
        MISMATCH, "KL divergence between the rollout engine's and the trainer's probabilities of the same tokens."
    ),
    "clip_share": _quantity(CLIP_SHARE, "Tokens without a gradient, since their ratio was clipped.", only_if_any=True),
    "verifier": _verdicts,
    "time": _time,
}

FIGURES = (*_DRAWERS, "summary")
"""The names of all figures that a report may have."""
