"""Held-out questions one by one: which are solved when, and how much more responses a question would find."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hpt.evaluation.estimates import Estimate, bootstrap, pass_at_k
from hpt.evaluation.evaluate import RESULTS
from hpt.records.files import EVALUATIONS
from hpt.report.panels import PERCENT, group_styles, legend_above
from hpt.report.runs import Answered, Group, Run, natural_key, read_answered
from hpt.report.style import INK, MUTED, PAPER, SHARE_COLOURS

SHARES = LinearSegmentedColormap.from_list("share of right responses", SHARE_COLOURS)
_LABELS = 8  # evaluations named below a map
_BANDS = 3  # curves whose intervals can be told apart as bands


# ---- pass@k


@dataclass(frozen=True)
class PassCurve:
    """Unbiased pass@k of a group, the mean over its questions (each the mean over runs), with 95% intervals."""

    n: int
    ks: list[int]
    estimates: list[Estimate]


def pass_curve(evaluations: Sequence[Sequence[Answered]]) -> PassCurve:
    """Of one evaluation a run; k = 1, 2, 4, ... and n, the fewest responses that any question has."""
    n = min(question.n for questions in evaluations for question in questions)
    ks = sorted({*(2**power for power in range(n.bit_length())), n})
    values: dict[str, list[list[float]]] = {}
    for question in (question for questions in evaluations for question in questions):
        found = [pass_at_k(question.n, question.correct, k) for k in ks]
        values.setdefault(question.key, []).append(found)
    means = np.array([np.mean(found, axis=0) for found in values.values()])  # (questions, ks)
    return PassCurve(n, ks, [bootstrap(column.tolist()) for column in means.T])


def mean_pass_at_k(questions: Sequence[Answered], k: int) -> float:
    """Of one evaluation."""
    return statistics.fmean(pass_at_k(question.n, question.correct, k) for question in questions)


def final_evaluations(group: Group) -> tuple[list[tuple[Answered, ...]], str]:
    """The evaluation of each run that pass@k is taken from, and where they come from.

    What `hpt eval` wrote into the runs' eval/ where all have it, else the last of each training.
    """
    apart = [run.folder / EVALUATIONS / RESULTS for run in group.runs]
    if all(path.is_file() for path in apart):
        return [read_answered(path) for path in apart], "hpt eval"
    return [run.answered[max(run.answered)] for run in _recorded(group)], "training"


def draw_pass_at_k(axes: Axes, groups: Sequence[Group]) -> str | None:
    """A curve a group, and one before training; what to say of them, None with nothing drawn."""
    finals = {group.label: final_evaluations(group) for group in groups}
    curves = [
        (group.label, pass_curve(finals[group.label][0]), colour, dash)
        for group, colour, dash in group_styles(groups)
        if finals[group.label][0]
    ]
    if all(source == "training" for _, source in finals.values()):
        first = [
            run.answered[min(run.answered)] for group in groups for run in _recorded(group) if len(run.answered) > 1
        ]
        if first:
            curves.insert(0, ("before training", pass_curve(first), MUTED, (0, (4, 2))))
    curves = [curve for curve in curves if curve[1].n > 1]
    if not curves:
        return None
    handles = []
    for index, (label, curve, colour, dash) in enumerate(curves):
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "lw": 2.2, "marker": "o", "ms": 4.5}
        means, lows, highs = zip(*curve.estimates, strict=True)
        places = np.array(curve.ks, np.float64)
        if len(curves) <= _BANDS:
            axes.fill_between(places, lows, highs, color=colour, alpha=0.13, lw=0)
        else:  # side by side, since bands would cover each other
            places *= 2 ** (0.04 * (index - (len(curves) - 1) / 2))
            axes.vlines(places, lows, highs, color=colour, lw=1.1, alpha=0.55)
        axes.plot(places, means, mec=PAPER, mew=0.8, clip_on=False, zorder=4, **style)
        handles.append((label, Line2D([], [], **style)))
    counts = {curve.n for _, curve, _, _ in curves}
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.9, max(counts) * 1.1)
    ticks = [2**power for power in range(max(counts).bit_length())]
    axes.xaxis.set_major_locator(FixedLocator([*ticks, *(n for n in counts if n > 1.4 * ticks[-1])]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_ylim(0, min(1.0, axes.dataLim.y1 * 1.06) or 1.0)
    axes.set_xlabel("k, responses a question")
    axes.set_ylabel("questions solved by one of k")
    rows = legend_above(axes, handles) if len(handles) > 1 else 0
    axes.set_title("pass@k on held-out questions", pad=9 + 16 * rows)
    marks = "bands" if len(curves) <= _BANDS else "whiskers"
    return f"Unbiased, from n = {', '.join(map(str, sorted(counts)))} responses; {marks}: 95% intervals over questions."


# ---- the map of questions


@dataclass(frozen=True)
class QuestionMap:
    """Share of right responses of each question after each evaluation, the mean over the runs of a group.

    shares: (questions, evaluations) float64, sorted by grade and then by the mean along the row, the best first.
    """

    steps: list[int]
    grades: list[str]
    shares: np.ndarray


def question_map(group: Group) -> QuestionMap | None:
    """At the steps that all runs of the group have evaluated at; None where there is no such step."""
    runs = _recorded(group)
    common = set.intersection(*(set(run.answered) for run in runs)) if runs else set()
    if not common:
        return None
    steps = sorted(common)
    rows: dict[str, list[list[float]]] = {}
    grades: dict[str, str] = {}
    for run in runs:
        along = [{each.key: each for each in run.answered[step]} for step in steps]
        for key, question in along[0].items():
            rows.setdefault(key, []).append([found[key].correct / found[key].n for found in along])
            grades[key] = question.grade or ""
    means = {key: np.mean(found, axis=0) for key, found in rows.items()}
    order = sorted(means, key=lambda key: (natural_key(grades[key]), -means[key].mean(), -means[key][-1], key))
    return QuestionMap(steps, [grades[key] for key in order], np.array([means[key] for key in order]))


def draw_question_map(axes: Axes, group: Group, title: str) -> AxesImage | None:
    """A row a question, a column an evaluation; grades from the top, parted by lines."""
    found = question_map(group)
    if found is None:
        return None
    image = axes.imshow(found.shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    places, names = [], []
    start = 0
    for grade in dict.fromkeys(found.grades):
        count = found.grades.count(grade)
        places.append(start + (count - 1) / 2)
        names.append(grade)
        start += count
        if start < len(found.grades):
            axes.axhline(start - 0.5, color=PAPER, lw=2.5)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", labelcolor=INK)
    every = -(-len(found.steps) // _LABELS)
    axes.set_xticks(range(0, len(found.steps), every), [str(step) for step in found.steps[::every]])
    axes.set_xlabel("evaluation after step")
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title(title)
    return image


def _recorded(group: Group) -> list[Run]:
    return [run for run in group.runs if run.answered]
