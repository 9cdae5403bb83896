"""Evaluations on held-out questions as a run records them: totals in metrics.jsonl, single questions in eval/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt.evaluation.evaluate import read_results
from hpt.support.console import visible

ALL = "all"
"""How the numbers of all questions are labelled. A grade may have the same name."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: right responses and responses, over all questions and by grade."""

    step: int
    correct: float
    count: int
    grades: dict[str, tuple[float, int]]

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    def accuracy_of(self, grade: str) -> float | None:
        """The accuracy of a grade; None if it has no responses."""
        correct, count = self.grades.get(grade, (0.0, 0))
        return correct / count if count else None


@dataclass(frozen=True)
class QuestionCounts:
    """One question in one evaluation: `correct` of `n` responses are right. key: unique to the question."""

    key: str
    grade: str | None
    n: int
    correct: int


def keys_of(questions: Iterable[QuestionCounts]) -> frozenset[str]:
    """The keys of questions, by which two evaluations are known to ask the same."""
    return frozenset(question.key for question in questions)


def read_evaluations(metrics: Sequence[dict[str, Any]]) -> list[Evaluation]:
    """All evaluations in a run's metrics, in the order of steps."""
    found = []
    for record in metrics:
        if not record.get("eval/count"):
            continue
        grades = {
            visible(key.removeprefix("eval/correct/")): (value, record.get(key.replace("correct", "count", 1), 0))
            for key, value in record.items()
            if key.startswith("eval/correct/")
        }
        ordered = dict(sorted(grades.items(), key=lambda item: natural_key(item[0])))
        found.append(Evaluation(record["step"], record["eval/correct"], record["eval/count"], ordered))
    return found


def grades_of(evaluations: Iterable[Evaluation]) -> list[str]:
    """The grades of all evaluations, in order of appearance."""
    return list(dict.fromkeys(grade for evaluation in evaluations for grade in evaluation.grades))


def read_question_counts(path: Path) -> tuple[QuestionCounts, ...]:
    """The questions of an evaluation's file of results (eval/step-*.jsonl or results.jsonl)."""
    return tuple(
        QuestionCounts(
            json.dumps([record["prompt"], record["answer"]]), record["grade"], record["n"], record["correct"]
        )
        for record in read_results(path).values()
    )


def natural_key(text: str) -> list[tuple[int, str, str]]:
    """Sort key that puts "2 digits" before "10 digits"."""
    return [_part_key(part) for part in re.split(r"([0-9]+)", text)]


def _part_key(part: str) -> tuple[int, str, str]:
    # Python reads no more than 4,300 digits as a number, and a data file may have more.
    if not re.fullmatch(r"[0-9]+", part):
        return 0, "", part
    digits = part.lstrip("0") or "0"
    return len(digits), digits, part
