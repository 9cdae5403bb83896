"""Held-out questions one by one, over the runs of a group: pass@k, and the share of right responses at each step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpt.evaluation.statistics import Estimate, bootstrap, pass_at_k
from hpt.report.conditions import Conditions
from hpt.report.evaluations import QuestionCounts, keys_of, natural_key
from hpt.report.runs import Run, RunGroup
from hpt.report.saved_evaluations import saved_evaluations
from hpt.support.console import visible


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


@dataclass(frozen=True)
class Comparable:
    """Evaluations of several groups under the same conditions: by the label of a group, one evaluation per run."""

    conditions: Conditions
    by_group: dict[str, list[tuple[QuestionCounts, ...]]]
    in_training: bool


def comparable_evaluations(groups: Sequence[RunGroup]) -> list[Comparable]:
    """The last evaluations of the trainings, then those by `hpt eval`; groups with other questions are kept apart.

    An evaluation by `hpt eval` of the same questions, of every run, takes the place of those of the trainings.
    """
    saved = _saved(groups)
    trained = [
        evaluations
        for evaluations in _trained(groups)
        if not any(_ask_the_same(evaluations, others) for others in saved)
    ]
    return trained + saved


def last_evaluations(group: RunGroup) -> list[tuple[QuestionCounts, ...]]:
    """The last evaluation of each training."""
    return [run.question_counts[max(run.question_counts)] for run in evaluated_runs(group)]


def _trained(groups: Sequence[RunGroup]) -> list[Comparable]:
    found: dict[Conditions, dict[str, list[tuple[QuestionCounts, ...]]]] = {}
    for group in groups:
        if group.held_out and evaluated_runs(group):
            found.setdefault(group.held_out, {})[group.label] = last_evaluations(group)
    return [Comparable(conditions, by_group, in_training=True) for conditions, by_group in found.items()]


def _saved(groups: Sequence[RunGroup]) -> list[Comparable]:
    """Of groups all of whose runs have the evaluation."""
    by_run: dict[Conditions, dict[str, tuple[QuestionCounts, ...]]] = {}
    for each in saved_evaluations([run for group in groups for run in group.runs]):
        by_run.setdefault(each.conditions, {})[each.run.name] = each.questions
    found = []
    for conditions, questions in by_run.items():
        by_group = {
            group.label: [questions[run.name] for run in group.runs]
            for group in groups
            if all(run.name in questions for run in group.runs)
        }
        if by_group:
            found.append(Comparable(conditions, by_group, in_training=False))
    return found


def _ask_the_same(trained: Comparable, saved: Comparable) -> bool:
    """Whether `saved` has all the groups of `trained`, with the same questions."""
    return all(
        label in saved.by_group and set(map(keys_of, saved.by_group[label])) == set(map(keys_of, evaluations))
        for label, evaluations in trained.by_group.items()
    )


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
            grades[key] = visible(question.grade or "")
    means = {key: np.mean(over_runs, axis=0) for key, over_runs in shares.items()}
    order = sorted(means, key=lambda key: (natural_key(grades[key]), -means[key].mean(), -means[key][-1], key))
    return QuestionMap(steps, [grades[key] for key in order], np.array([means[key] for key in order]))
