"""The figures of a report, each of its own PNG and page element, and the compact figure that sums up a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from hpt.report import panels
from hpt.report.ablation import draw_final_accuracy, draw_sft_share, gamma_families
from hpt.report.panels import Quantity
from hpt.report.questions import draw_pass_at_k, draw_question_map
from hpt.report.runs import Group, group_runs, load_runs
from hpt.report.style import MUTED, step_axis, styled, to_png
from hpt.support.files import make_folder, write_file_atomically

SIZE = (6.6, 3.7)  # inches


@dataclass(frozen=True)
class Drawn:
    """One figure of the report."""

    name: str
    caption: str
    figure: Figure
    wide: bool = False


def draw_figures(groups: Sequence[Group]) -> tuple[list[Drawn], list[str]]:
    """Every figure that the runs have numbers for, and a note for each one they don't."""
    drawn: list[Drawn] = []
    notes: list[str] = []
    for draw in _DRAWERS.values():
        result = draw(groups)
        if isinstance(result, Drawn):
            drawn.append(result)
        else:
            notes.append(result)
    return drawn, notes


def summary_figure(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Write one PNG of 2 x 2 panels that sums up a run, or overlays several.

    Reward; gate counts with the share sent to SFT (several runs: that share alone); held-out accuracy; entropy
    and response length. A panel says so where the runs have no such numbers. Raises HptError for what is not a run
    and where the file can't be written.
    """
    groups = group_runs(load_runs(folders))
    path = Path(path)
    with styled():
        figure = to_png(draw_summary(groups))
    make_folder(path.parent)
    write_file_atomically(path, figure)
    return path


def draw_summary(groups: Sequence[Group]) -> Figure:
    figure = Figure(figsize=(10, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.05))
    grid = figure.add_gridspec(2, 2)
    reward, gates, accuracy = (figure.add_subplot(grid[i // 2, i % 2]) for i in range(3))
    below = grid[1, 1].subgridspec(2, 1, hspace=0.12)
    entropy, length = (figure.add_subplot(below[i]) for i in range(2))

    if not panels.draw_quantity(reward, groups, panels.REWARD, legend=False):
        _absent(reward, panels.REWARD.title, "no rollouts in this run")
    if len(groups) > 1:
        gates_drawn = panels.draw_quantity(gates, groups, panels.SFT_SHARE, legend=False)
    else:
        title = "Questions by rollouts right, and sent to SFT"
        gates_drawn = panels.draw_gates(gates, groups[0], title, sft_line=True) or panels.draw_quantity(
            gates, groups, panels.SFT_SHARE
        )
    if not gates_drawn:
        _absent(gates, "Questions sent to SFT", "not recorded")
    if not panels.draw_accuracy(accuracy, groups, legend=False):
        _absent(accuracy, "Held-out accuracy", "no evaluation in this run")
    for axes, quantity in ((entropy, panels.ENTROPY), (length, panels.LENGTH)):
        if not panels.draw_quantity(axes, groups, quantity, legend=False):
            _absent(axes, quantity.title, "not recorded")
        axes.locator_params(axis="y", nbins=4)
    entropy.set_xlabel("")
    entropy.tick_params(labelbottom=False)
    if len(groups) > 1:
        handles = [
            Line2D([], [], color=colour, linestyle=dash, lw=2.4, label=_counted(group))
            for group, colour, dash in panels.group_styles(groups)
        ]
        longest = max(len(str(handle.get_label())) for handle in handles)
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=max(1, min(len(handles), 120 // (longest + 6))),
            fontsize=10,
        )
    return figure


def _quantity(
    quantity: Quantity, caption: str, *, only_if_any: bool = False
) -> Callable[[Sequence[Group]], Drawn | str]:
    def draw(groups: Sequence[Group]) -> Drawn | str:
        figure, axes = _single()
        if not panels.draw_quantity(axes, groups, quantity):
            return f"{quantity.title}: no step records {quantity.keys}."
        if only_if_any and not any(run.total(quantity.numerator) for group in groups for run in group.runs):
            return f"{quantity.title}: none in any step."
        return Drawn(quantity.name, caption, figure)

    return draw


def _gates(groups: Sequence[Group]) -> Drawn | str:
    title = "Questions by how many of their rollouts are right"
    caption = "None right: nothing for RL to learn from. All right: no advantage, so no gradient."
    drawn = _each_group(groups, panels.draw_gates, "gate_counts", title, caption, legend_columns=3)
    return drawn or "Gate counts: no step records gate/none, gate/some and gate/all."


def _verdicts(groups: Sequence[Group]) -> Drawn | str:
    caption = "What became of the rollouts' answers; in brackets how many in all."
    drawn = _each_group(groups, panels.draw_verdicts, "verifier", "Verifier outcomes", caption, legend_columns=2)
    return drawn or "Verifier outcomes: no step records verify/correct and its like."


def _each_group(
    groups: Sequence[Group], draw: Callable[..., bool], name: str, title: str, caption: str, *, legend_columns: int
) -> Drawn | None:
    """One panel a group that has the numbers, side by side."""
    with_numbers = [group for group in groups if draw(_single()[1], group, title)]
    if not with_numbers:
        return None
    if len(groups) == 1:
        figure, axes = _single()
        draw(axes, groups[0], title)
        return Drawn(name, caption, figure)
    figure, panels_ = _many(len(with_numbers), title)
    for axes, group in zip(panels_, with_numbers, strict=True):
        draw(axes, group, group.label, columns=legend_columns)
    return Drawn(name, caption, figure, wide=True)


def _accuracy(groups: Sequence[Group]) -> Drawn | str:
    figure, axes = _single()
    if not panels.draw_accuracy(axes, groups):
        return "Held-out accuracy: no step records eval/correct and eval/count."
    return Drawn("accuracy", "Share of right answers to the held-out questions.", figure)


def _by_grade(groups: Sequence[Group]) -> Drawn | str:
    figure, axes = _single()
    runs = [run for group in groups for run in group.runs]
    if not any(len(run.evaluations) > 1 for run in runs):
        return "Held-out accuracy by grade: fewer than two evaluations, so no before and after."
    if len(runs) == 1:
        panels.draw_before_after(axes, runs[0])
        return Drawn("accuracy_by_grade", "Open dot: the first evaluation. Full dot: the last.", figure)
    panels.draw_by_grade(axes, groups)
    caption = (
        "Bars: mean over seeds at the last evaluation; whiskers: worst and best seed; marks: the first evaluation."
    )
    return Drawn("accuracy_by_grade", caption, figure)


def _pass_at_k(groups: Sequence[Group]) -> Drawn | str:
    figure, axes = _single()
    caption = draw_pass_at_k(axes, groups)
    if caption is None:
        return (
            "pass@k: no evaluation with more than one response a question (eval.n, or hpt eval RUN --output RUN/eval)."
        )
    return Drawn("pass_at_k", caption, figure)


def _question_map(groups: Sequence[Group]) -> Drawn | str:
    title = "Held-out questions over the training"
    caption = "A row a question, by grade; the colour is its share of right responses"
    with_maps = [group for group in groups if draw_question_map(_single()[1], group, title)]
    if not with_maps:
        return f"{title}: no run has its evaluations question by question (eval/step-*.jsonl)."
    wide = len(with_maps) > 1
    figure, axes = _single()
    panels_ = [axes]
    if wide:
        figure, panels_ = _many(len(with_maps), title)
    for axes, group in zip(panels_, with_maps, strict=True):
        image = draw_question_map(axes, group, group.label if wide else title)
    assert image is not None
    bar = figure.colorbar(image, ax=panels_, format=panels.PERCENT, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # its colours are half transparent, and a vector's seams would show
    seeds = ", the mean over seeds." if any(len(group.runs) > 1 for group in with_maps) else "."
    return Drawn("question_map", caption + seeds, figure, wide=wide)


def _gate_ablation(groups: Sequence[Group]) -> Drawn | str:
    families = gamma_families(groups)
    if not families:
        return "Gate ablation: no runs that differ in gate.gamma."
    figure = Figure(figsize=(SIZE[0] * 2, SIZE[1]), layout=ConstrainedLayoutEngine(wspace=0.06))
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    drawn = [draw_final_accuracy(left, families), draw_sft_share(right, families)]
    for axes, fine, title in zip((left, right), drawn, ("Held-out accuracy", "Questions sent to SFT"), strict=True):
        if not fine:
            _absent(axes, title, "not recorded")
    caption = "Left: small dots are runs, the line is their mean, whiskers one standard deviation over seeds."
    return Drawn("gate_ablation", caption, figure, wide=True)


def _grad_norm(groups: Sequence[Group]) -> Drawn | str:
    result = _quantity(panels.GRAD_NORM, "Norm of the gradient before it is clipped.")(groups)
    if isinstance(result, str):
        return result
    skipped = panels.draw_skipped(result.figure.axes[0], groups)
    said = f" Crosses: steps with skipped updates ({skipped} in all)." if skipped else ""
    return Drawn(result.name, result.caption + said, result.figure)


def _time(groups: Sequence[Group]) -> Drawn | str:
    runs = [run for group in groups for run in group.runs]
    figure = Figure(figsize=(SIZE[0], max(SIZE[1], 1.6 + 0.28 * len(runs))), layout="constrained")
    if not panels.draw_time(figure.add_subplot(), runs):
        return "Time by phase: no step records time/PHASE."
    return Drawn("time", "Wall time of the whole run.", figure)


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _many(count: int, title: str) -> tuple[Figure, list[Axes]]:
    """Panels side by side under one title."""
    columns = 2 if count in (2, 4) else 3
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(SIZE[0] * 2, 0.4 + 3.6 * rows), layout=ConstrainedLayoutEngine(wspace=0.06))
    figure.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(count)]


def _counted(group: Group) -> str:
    return group.label if len(group.runs) == 1 else f"{group.label} ({len(group.runs)} seeds)"


def _absent(axes: Axes, title: str, reason: str) -> None:
    axes.set_title(title)
    step_axis(axes, 1, label=False)
    axes.set_axis_off()
    axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED, style="italic")


_DRAWERS: dict[str, Callable[[Sequence[Group]], Drawn | str]] = {
    "reward": _quantity(panels.REWARD, "What the verifier gave the rollouts."),
    "sft_share": _quantity(
        panels.SFT_SHARE, "The share of offline data: questions trained by SFT on their demonstration alone."
    ),
    "off_policy": _quantity(
        panels.OFF_POLICY, "Demonstrations trained on by off-policy RL, of all rows with a gradient.", only_if_any=True
    ),
    "gate_counts": _gates,
    "accuracy": _accuracy,
    "accuracy_by_grade": _by_grade,
    "pass_at_k": _pass_at_k,
    "question_map": _question_map,
    "gate_ablation": _gate_ablation,
    "entropy": _quantity(
        panels.ENTROPY,
        "Mean of -log p of the sampled tokens; without rollouts the exact entropy over demonstrations.",
    ),
    "response_length": _quantity(panels.LENGTH, "Tokens of a rollout, its end included."),
    "truncated": _quantity(
        panels.TRUNCATED, "Rollouts that reached rollout.max_tokens before they ended.", only_if_any=True
    ),
    "grad_norm": _grad_norm,
    "mismatch": _quantity(
        panels.MISMATCH, "Divergence of the sampler's probabilities from the trainer's, on the same tokens."
    ),
    "clip_share": _quantity(panels.CLIP_SHARE, "Tokens whose gradient the ratio's clipping removed.", only_if_any=True),
    "verifier": _verdicts,
    "time": _time,
}
FIGURES = (*_DRAWERS, "summary")
