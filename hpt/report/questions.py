"""Held-out questions one by one, over the runs of a group: pass@k, and the share of right responses at each step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpt.evaluation.evaluate import RESULTS
from hpt.evaluation.statistics import Estimate, bootstrap, pass_at_k
from hpt.records.files import EVALUATIONS
from hpt.report.evaluations import QuestionCounts, natural_key, read_question_counts
from hpt.report.runs import Run, RunGroup


@dataclass(frozen=True)
class PassCurve:
    """Unbiased pass@k for several k: means over questions (each a mean over runs), with 95% intervals."""

    n: int
    ks: list[int]
    estimates: list[Estimate]


def pass_curve(evaluations: Sequence[Sequence[QuestionCounts]]) -> PassCurve:
    """The curve of one evaluation per run, for k = 1, 2, 4, ... and n, the fewest responses that any question has."""
    n = min(question.n for questions in evaluations for question in questions)
    ks = sorted({*(2**power for power in range(n.bit_length())), n})
    values: dict[str, list[list[float]]] = {}
    for questions in evaluations:
        for question in questions:
            of_question = [pass_at_k(question.n, question.correct, k) for k in ks]
            values.setdefault(question.key, []).append(of_question)
    means = np.array([np.mean(over_runs, axis=0) for over_runs in values.values()])  # (questions, ks)
    return PassCurve(n, ks, [bootstrap(column.tolist()) for column in means.T])


def mean_pass_at_k(questions: Sequence[QuestionCounts], k: int) -> float:
    """The mean pass@k of one evaluation."""
    return statistics.fmean(pass_at_k(question.n, question.correct, k) for question in questions)


def final_evaluations(group: RunGroup) -> tuple[list[tuple[QuestionCounts, ...]], str]:
    """The last evaluation of each run, and its origin: "hpt eval" or "training".

    If all runs have an evaluation by `hpt eval` in their eval/, those; else the last one of each training.
    """
    paths = [run.folder / EVALUATIONS / RESULTS for run in group.runs]
    if all(path.is_file() for path in paths):
        return [read_question_counts(path) for path in paths], "hpt eval"
    return [run.question_counts[max(run.question_counts)] for run in evaluated_runs(group)], "training"


def first_evaluations(group: RunGroup) -> list[tuple[QuestionCounts, ...]]:
    """The first evaluation of each training that has another one after it."""
    runs = [run for run in evaluated_runs(group) if len(run.question_counts) > 1]
    return [run.question_counts[min(run.question_counts)] for run in runs]


def evaluated_runs(group: RunGroup) -> list[Run]:
    """The runs whose training was evaluated question by question."""
    return [run for run in group.runs if run.question_counts]


@dataclass(frozen=True)
class QuestionMap:
    """Share of right responses of each question at each evaluation, the mean over the runs of a group.

    shares: (questions, evaluations) float64, sorted by grade and then by the mean over evaluations, the best first.
    grades: that of each question, "" if it has none.
    """

    steps: list[int]
    grades: list[str]
    shares: np.ndarray


def question_map(group: RunGroup) -> QuestionMap | None:
    """The map at the steps at which all runs of the group were evaluated; None if there is no such step."""
    runs = evaluated_runs(group)
    common = set.intersection(*(set(run.question_counts) for run in runs)) if runs else set()
    if not common:
        return None
    steps = sorted(common)
    shares: dict[str, list[list[float]]] = {}
    grades: dict[str, str] = {}
    for run in runs:
        by_step = [{question.key: question for question in run.question_counts[step]} for step in steps]
        for key, question in by_step[0].items():
            of_question = [questions[key].correct / questions[key].n for questions in by_step]
            shares.setdefault(key, []).append(of_question)
            grades[key] = question.grade or ""
    means = {key: np.mean(over_runs, axis=0) for key, over_runs in shares.items()}
    order = sorted(means, key=lambda key: (natural_key(grades[key]), -means[key].mean(), -means[key][-1], key))
    return QuestionMap(steps, [grades[key] for key in order], np.array([means[key] for key in order]))
