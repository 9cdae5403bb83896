"""The base of all verifiers: responses and gold answers in, verdicts out."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self, get_args

from hpt.support.errors import DataError, RewardError
from hpt.verify.pool import Outcome, WorkerPool
from hpt.verify.verdict import Status, Verdict

if TYPE_CHECKING:
    from hpt.config.sections.rollout import VerifyConfig
    from hpt.data.questions import Question
    from hpt.verify.rewards import Completion


class Verifier:
    """Grades responses in worker processes that are killed when an answer exceeds its limits.

    A context manager: the processes start on entry (or at the first use, in about a second) and end on exit. It cannot
    be used again after `close`.

    workers: processes that grade at once. timeout: wall-clock seconds per answer. memory_mb: MiB that an answer may
    take beyond the loaded libraries (Linux).

    A subclass names the functions that its workers import, as "module:function":

    grade: called as f(response, answer), or with what `_arguments` returns. It returns (status, detail), where the
        status is "correct", "incorrect", "unparsable", or "unusable" if the gold answer cannot be used.
    gradable: called as f(answer), whether a right response to this gold answer would be recognised. None: always.
    """

    grade: str
    gradable: str | None = None

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory_mb: int = 1024) -> None:
        functions = [self.grade] if self.gradable is None else [self.grade, self.gradable]
        self._pool = WorkerPool(functions, workers=workers, timeout=timeout, memory_mb=memory_mb)

    @classmethod
    def from_settings(cls, settings: VerifyConfig) -> Self:
        """The verifier that a recipe's `verify` section describes. ConfigError where a function cannot be imported."""
        return cls(settings.workers, settings.timeout, settings.memory_mb)

    def __enter__(self) -> Self:
        self._pool.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def score(self, responses: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """The verdict on each response, given the gold answer at the same index. Equal pairs are graded once.

        DataError if a gold answer cannot be used; HptError if a user-defined function fails.
        """
        if len(responses) != len(answers):
            raise ValueError(f"{len(responses)} responses but {len(answers)} answers")
        with self.scoring() as scoring:
            for index, (response, answer) in enumerate(zip(responses, answers, strict=True)):
                scoring.add(index, response, answer)
            verdicts = scoring.verdicts()
        return [verdicts[index] for index in range(len(responses))]

    def mark(self, questions: Sequence[Question], groups: Sequence[Sequence[Completion]]) -> list[list[Verdict]]:
        """The verdicts on each question's completions."""
        texts = [completion.text for group in groups for completion in group]
        answers = [question.gold for question, group in zip(questions, groups, strict=True) for _ in group]
        verdicts = iter(self.score(texts, answers))
        return [[next(verdicts) for _ in group] for group in groups]

    def scoring(self) -> Scoring:
        """A context manager that takes responses one by one and grades them in the background."""
        return Scoring(self)

    def parsable(self, answers: Sequence[str]) -> list[bool]:
        """Whether a right response to each gold answer would be recognised. Meant for a check before training."""
        if self.gradable is None:
            return [True] * len(answers)
        outcomes = self._pool.map(self.gradable, [(answer,) for answer in answers])
        return [outcome.kind == "done" and outcome.value for outcome in outcomes]

    def _arguments(self, response: str, answer: str) -> tuple[Any, ...] | Verdict:
        """The arguments of `grade` for this pair, or the verdict if no call is needed."""
        return response, answer

    def _verdict(self, outcome: Outcome, answer: str) -> Verdict:
        """The verdict that a call of `grade` leads to."""
        if outcome.kind == "exceeded":
            return Verdict("timeout", 0.0, f"exceeded {outcome.value}")
        if outcome.kind == "died":
            return Verdict("timeout", 0.0, outcome.value)
        if outcome.kind == "failed":
            return Verdict("unparsable", 0.0, outcome.value)
        status, detail = self._graded(outcome.value, answer)
        if status == "unusable":
            raise DataError(f"the verifier cannot parse the gold answer {shorten(answer)}")
        return Verdict(status, float(status == "correct"), detail)

    def _graded(self, value: Any, answer: str) -> tuple[Any, str]:
        """The status and the detail that `grade` returned. RewardError for anything else."""
        statuses = [*get_args(Status), "unusable"]
        if isinstance(value, list) and len(value) == 2 and value[0] in statuses and isinstance(value[1], str):
            return value[0], value[1]
        raise RewardError(
            f"the verifier's {self.grade!r}, called on a response to the gold answer {shorten(answer)}, returned "
            f"{reprlib.repr(value)}; allowed: (status, detail), a status of {', '.join(statuses)} and a text"
        )


class Scoring:
    """Responses that are graded while more of them come. Equal pairs of response and answer are graded once.

    Leaving the context early drops what is not graded.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._calls: dict[tuple[Any, ...], Future[Outcome]] = {}  # by arguments
        self._waiting: dict[Hashable, tuple[Future[Outcome], str]] = {}  # by key, with the gold answer
        self._known: dict[Hashable, Verdict] = {}  # by key

    def __enter__(self) -> Self:
        self._tasks = self._verifier._pool.tasks()
        return self

    def __exit__(self, *error: object) -> None:
        self._tasks.cancel()

    def add(self, key: Hashable, response: str, answer: str) -> None:
        """Starts grading a response. `key` names it among the verdicts."""
        for name, text in (("response", response), ("answer", answer)):
            if not isinstance(text, str):
                raise TypeError(f"{name} {key!r} must be a string, got {text!r}")
        arguments = self._verifier._arguments(response, answer)
        if isinstance(arguments, Verdict):
            self._known[key] = arguments
            return
        if arguments not in self._calls:
            self._calls[arguments] = self._tasks.submit(self._verifier.grade, *arguments)
        self._waiting[key] = self._calls[arguments], answer

    def verdicts(self) -> dict[Hashable, Verdict]:
        """Waits for all verdicts and returns them by key. Raises as `Verifier.score` does."""
        graded = {key: self._verifier._verdict(call.result(), answer) for key, (call, answer) in self._waiting.items()}
        return self._known | graded


def shorten(answer: str) -> str:
    return repr(answer if len(answer) <= 100 else answer[:100] + "...")
