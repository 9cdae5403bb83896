"""Accuracy, avg@n and pass@k of a policy on questions with known answers, for `hpt eval` and during training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from hpt.data.fields import label
from hpt.data.problems import Problems, describe
from hpt.data.questions import Question
from hpt.data.readers import read_records
from hpt.evaluation.statistics import Estimate, bootstrap, pass_at_k
from hpt.rollout import Rollout
from hpt.rollout.responses import GenerateResponses
from hpt.support.errors import HptError
from hpt.support.files import make_folder, write_file_atomically
from hpt.verify import Status, Verdict

Mark = Callable[[Sequence[Question], Sequence[Sequence[Rollout]]], list[list[Verdict]]]
"""Says which rollouts of each question are right, as `Verifier.mark` does."""

RESULTS = "results.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class QuestionResult:
    """One question and its verified rollouts."""

    question: Question
    rollouts: list[Rollout]

    @cached_property
    def correct(self) -> int:
        """How many rollouts are right. Partial credit does not count."""
        return sum(rollout.status == "correct" for rollout in self.rollouts)

    def counts(self) -> dict[str, Any]:
        """The question's object in a run's eval/step-*.jsonl: what `hpt compare` reads, without the responses."""
        return {
            "id": self.question.id,
            "grade": self.question.grade,
            "prompt": self.question.prompt,
            "answer": self.question.answer,
            "n": len(self.rollouts),
            "correct": self.correct,
            "lengths": [len(rollout.tokens) for rollout in self.rollouts],
        }

    def record(self) -> dict[str, Any]:
        """The question's object in results.jsonl."""
        return self.counts() | {
            "responses": [rollout.text for rollout in self.rollouts],
            "scores": [rollout.score for rollout in self.rollouts],
            "statuses": [rollout.status for rollout in self.rollouts],
            "details": [rollout.verified.detail for rollout in self.rollouts],
            "finish_reasons": [rollout.finish_reason for rollout in self.rollouts],
        }

    def line(self) -> str:
        return json.dumps(self.record()) + "\n"


@dataclass(frozen=True)
class EvalResult:
    """The results of `n` responses to each question; there is at least one question."""

    n: int
    questions: list[QuestionResult]

    def __repr__(self) -> str:
        mean, low, high = (100 * number for number in self.average())
        accuracy = f"avg@{self.n} {mean:.1f}%, 95% interval {low:.1f} to {high:.1f}"
        return f"EvalResult({len(self.questions)} questions, {accuracy})"

    @cached_property
    def grades(self) -> dict[str, EvalResult]:
        """The results of each grade, in order of appearance; questions without a grade are in none."""
        names = dict.fromkeys(result.question.grade for result in self.questions)
        return {
            name: EvalResult(self.n, [result for result in self.questions if result.question.grade == name])
            for name in names
            if name is not None
        }

    @property
    def correct(self) -> int:
        return sum(result.correct for result in self.questions)

    @property
    def count(self) -> int:
        """Responses; `correct / count` is the accuracy."""
        return self.n * len(self.questions)

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    @property
    def shares(self) -> list[float]:
        """Each question's share of right responses."""
        return [result.correct / self.n for result in self.questions]

    @property
    def length_sum(self) -> int:
        """Tokens of all responses."""
        return sum(len(rollout.tokens) for rollout in self._rollouts)

    @property
    def truncated(self) -> int:
        """Responses that ended at the token limit."""
        return sum(rollout.finish_reason == "length" for rollout in self._rollouts)

    @property
    def statuses(self) -> dict[Status, int]:
        counts = Counter(rollout.status for rollout in self._rollouts)
        return {status: counts[status] for status in get_args(Status)}

    @property
    def _rollouts(self) -> list[Rollout]:
        return [rollout for result in self.questions for rollout in result.rollouts]

    def average(self) -> Estimate:
        """avg@n, the accuracy, with its confidence interval over questions."""
        return bootstrap(self.shares)

    def pass_at(self, k: int) -> Estimate:
        """Unbiased pass@k with its confidence interval over questions. HptError unless 1 <= k <= n."""
        if not 1 <= k <= self.n:
            raise HptError(f"pass@{k}: k must be from 1 to the number of responses per question, n = {self.n}")
        return bootstrap([pass_at_k(self.n, result.correct, k) for result in self.questions])

    def metrics(self) -> dict[str, float]:
        """The keys `eval/...` of a line of metrics.jsonl."""
        metrics = {
            "eval/accuracy": self.accuracy,
            "eval/correct": self.correct,
            "eval/count": self.count,
            "eval/length": self.length_sum / self.count,
            "eval/length_sum": self.length_sum,
            "eval/truncated": self.truncated,
            "eval/unparsable": self.statuses["unparsable"],
            "eval/timeout": self.statuses["timeout"],
        }
        for grade, result in self.grades.items():
            metrics[f"eval/accuracy/{grade}"] = result.accuracy
            metrics[f"eval/correct/{grade}"] = result.correct
            metrics[f"eval/count/{grade}"] = result.count
        return metrics

    def summary(self, ks: Sequence[int]) -> dict[str, Any]:
        """The numbers of summary.json: totals, avg@n and pass@k with 95% intervals, and the same for each grade."""
        return self._numbers(ks) | {"grades": {grade: result._numbers(ks) for grade, result in self.grades.items()}}

    def _numbers(self, ks: Sequence[int]) -> dict[str, Any]:
        estimates = {f"avg@{self.n}": self.average()} | {f"pass@{k}": self.pass_at(k) for k in ks}
        return {
            "questions": len(self.questions),
            "n": self.n,
            "correct": self.correct,
            "count": self.count,
            **{name: estimate._asdict() for name, estimate in estimates.items()},
            "length": self.length_sum / self.count,
            "length_sum": self.length_sum,
            "truncated": self.truncated,
            "statuses": self.statuses,
        }

    def write(self, folder: Path, ks: Sequence[int], settings: Mapping[str, Any]) -> None:
        """results.jsonl, one object per question, and summary.json with the settings that led to them.

        HptError where they cannot be written whole.
        """
        make_folder(folder)
        write_file_atomically(folder / RESULTS, "".join(map(QuestionResult.line, self.questions)).encode())
        write_json(folder / SUMMARY, {"settings": dict(settings), **self.summary(ks)})


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The objects of a file of results, by question id. DataError naming file, line and field where one is broken."""
    problems = Problems(str(path), "line")
    results: dict[str, dict[str, Any]] = {}
    for number, record in read_records(str(path), problems):
        missing = [key for key in ("id", "grade", "prompt", "answer", "n", "correct") if key not in record]
        if missing:
            problems.add(number, f"field {missing[0]!r} is missing; hpt eval writes it")
            continue
        n, correct = record["n"], record["correct"]
        if not (type(n) is type(correct) is int and n >= 1 and 0 <= correct <= n):
            problems.add(
                number,
                f"fields 'correct' and 'n' are {describe(correct)} and {describe(n)}; "
                "allowed: whole numbers, 0 <= correct <= n, n >= 1",
            )
        try:
            for field in ("id", "grade"):
                record[field] = label(record[field])
        except ValueError as error:
            problems.add(number, f"field {field!r} {error}")
            continue
        if str(record["id"]) in results:
            problems.add(number, f"field 'id' is {describe(record['id'])}, as in an earlier line")
        results[str(record["id"])] = record
    problems.raise_if_any()
    if not results:
        raise HptError(f"{path} holds no questions")
    return results


def write_json(path: Path, value: Any) -> None:
    """Indented, for reading; HptError where it cannot be written whole."""
    write_file_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def evaluate(
    questions: Sequence[Question],
    generate: GenerateResponses,
    mark: Mark,
    *,
    n: int,
    on_question: Callable[[QuestionResult], None] | None = None,
) -> EvalResult:
    """Samples n responses to each question, and marks those of a question once all are there, while others are sampled.

    on_question: called with each question's result as soon as it is there, in a thread of its own.
    HptError where there are no questions, or where a response cannot be marked.
    """
    if not questions:
        raise HptError("there are no questions to evaluate on")
    groups: list[list[Rollout | None]] = [[None] * n for _ in questions]
    results: dict[int, Future[QuestionResult]] = {}

    def judge(index: int) -> QuestionResult:
        (result,) = marked([questions[index]], [[rollout for rollout in groups[index] if rollout]], mark)
        if on_question:
            on_question(result)
        return result

    with ThreadPoolExecutor(1, "judge") as judges:

        def take(index: int, place: int, rollout: Rollout) -> None:
            groups[index][place] = rollout
            if None not in groups[index]:
                results[index] = judges.submit(judge, index)
                for result in results.values():
                    if result.done():
                        result.result()  # raises where it could not be marked: there is no use in going on

        check_counts(generate(questions, take), questions, n)
        return EvalResult(n, [results[index].result() for index in range(len(questions))])


def answer(questions: Sequence[Question], generate: GenerateResponses, mark: Mark, n: int) -> list[QuestionResult]:
    """The results of `questions`, of which there may be none, with verdicts by `mark`."""
    groups = generate(questions, None)
    check_counts(groups, questions, n)
    return marked(questions, groups, mark)


def marked(questions: Sequence[Question], groups: Sequence[list[Rollout]], mark: Mark) -> list[QuestionResult]:
    """The results of `questions`, whose rollouts get their verdicts."""
    for group, verdicts in zip(groups, mark(questions, groups), strict=True):
        for rollout, verdict in zip(group, verdicts, strict=True):
            rollout.verdict = verdict
    return [QuestionResult(*pair) for pair in zip(questions, groups, strict=True)]


def check_counts(groups: Sequence[Sequence[Rollout]], questions: Sequence[Question], n: int) -> None:
    """ValueError unless there are n rollouts of each question."""
    if [len(group) for group in groups] != [n] * len(questions):
        raise ValueError(f"generate must give n = {n} responses to each of {len(questions)} questions")
