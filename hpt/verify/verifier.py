"""The verifiers a trainer or an evaluation uses: responses and gold answers in, verdicts out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from hpt.support.errors import DataError, HptError
from hpt.support.named_functions import resolve
from hpt.verify.extract import final_answer
from hpt.verify.pool import Calls, Outcome, WorkerPool

if TYPE_CHECKING:
    from hpt.config.schema import VerifyConfig  # which imports torch

Status = Literal["correct", "incorrect", "unparsable", "timeout"]

_GRADE = "hpt.verify.grade:grade"
_GRADABLE = "hpt.verify.grade:gradable"
_GRADE_CHOICE = "hpt.verify.choice:grade"
_GRADABLE_CHOICE = "hpt.verify.choice:gradable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One response's result.

    status: "unparsable" where the response has no answer that can be read; "timeout" where a limit of time or memory
        was exceeded, or the worker crashed twice under the answer.
    score: in [0, 1]; MathVerifier and ChoiceVerifier give 1.0 where correct, else 0.0.
    detail: why an answer was unparsable or which limit it exceeded; may be empty.
    """

    status: Status
    score: float
    detail: str = ""


class Verifier:
    """A context manager whose processes start on entry (or at the first use, in about a second) and end on exit.

    workers: processes that grade at once. timeout: wall-clock seconds an answer may take. memory_mb: MiB an answer may
    take beyond the loaded libraries (Linux). After `close` it cannot be used again.
    """

    def __init__(self, function: str, *others: str, workers: int, timeout: float, memory_mb: int) -> None:
        self._function = function  # grades; the workers import the others, too
        self._pool = WorkerPool([function, *others], workers=workers, timeout=timeout, memory_mb=memory_mb)

    def __enter__(self) -> Self:
        self._pool.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close()

    def score(self, responses: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """The verdict of each response against the gold answer at its place. Equal pairs are graded once.

        DataError if a gold answer cannot be used; HptError if a function of the user's fails.
        """
        if len(responses) != len(answers):
            raise ValueError(f"{len(responses)} responses but {len(answers)} answers")
        with self.scoring() as scoring:
            for place, pair in enumerate(zip(responses, answers, strict=True)):
                scoring.add(place, *pair)
            verdicts = scoring.verdicts()
        return [verdicts[place] for place in range(len(responses))]

    def scoring(self) -> Scoring:
        """Grades in the background what is handed over one by one, as a context manager."""
        return Scoring(self)

    def parsable(self, answers: Sequence[str]) -> list[bool]:
        """Whether each gold answer is one that a right response can be recognised by. For checks before training."""
        return [True] * len(answers)

    def _question(self, response: str, answer: str) -> tuple[Hashable, ...] | Verdict:
        """The arguments of `_function` for this pair, or the verdict where there is nothing to ask."""
        return response, answer

    def _verdict(self, outcome: Outcome, answer: str) -> Verdict:
        """Of a grading function that returns (status, detail)."""
        if outcome.kind == "exceeded":
            return Verdict("timeout", 0.0, f"exceeded {outcome.value}")
        if outcome.kind == "failed":
            return Verdict("unparsable", 0.0, outcome.value)
        status, detail = outcome.value
        if status == "unusable":
            raise DataError(f"the verifier cannot parse the gold answer {_shorten(answer)}")
        return Verdict(status, float(status == "correct"), detail)

    def _all_done(self, function: str, answers: Sequence[str]) -> list[bool]:
        outcomes = self._pool.call(function, [(answer,) for answer in answers])
        return [outcome.kind == "done" and outcome.value for outcome in outcomes]


class Scoring:
    """Responses graded by a verifier's workers while more of them come. Equal pairs are graded once."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._calls = Calls(verifier._function)
        self._thread = ThreadPoolExecutor(1, "verifier")
        self._answers: dict[Hashable, str] = {}
        self._known: dict[Hashable, Verdict] = {}
        self._places: dict[Hashable, int] = {}  # among the calls, of each key's question
        self._asked: dict[tuple[Hashable, ...], int] = {}

    def __enter__(self) -> Self:
        self._work = self._thread.submit(self._verifier._pool.serve, self._calls)
        return self

    def __exit__(self, *error: object) -> None:
        self._calls.abandon()
        self._thread.shutdown()
        self._calls.__exit__()

    def add(self, key: Hashable, response: str, answer: str) -> None:
        """Hands a response over; `key` names it among the verdicts."""
        for name, text in (("response", response), ("answer", answer)):
            if not isinstance(text, str):
                raise TypeError(f"{name} {key!r} must be a string, got {text!r}")
        question = self._verifier._question(response, answer)
        if isinstance(question, Verdict):
            self._known[key] = question
            return
        if question not in self._asked:
            self._asked[question] = self._calls.add(question)
        self._answers[key], self._places[key] = answer, self._asked[question]

    def verdicts(self) -> dict[Hashable, Verdict]:
        """The verdict of each key, once all are there."""
        self._calls.end()
        self._work.result()
        outcomes = self._calls.outcomes()
        return self._known | {
            key: self._verifier._verdict(outcomes[place], self._answers[key]) for key, place in self._places.items()
        }


class MathVerifier(Verifier):
    r"""Grades mathematical answers with math-verify (LaTeX and plain expressions, compared by sympy).

    The answer of a response is the content of its last `\boxed{...}`; if that box is empty, cut off or longer than
    2,000 characters the response is unparsable. In a response without a box math-verify looks for an answer ("the
    answer is ...", else the last formula or number) in the last 2,000 characters; with `boxed` it is unparsable, too.
    Golds may be boxed, in dollar signs, or like `4.5e33`.
    """

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory_mb: int = 1024, *, boxed: bool = False) -> None:
        super().__init__(_GRADE, _GRADABLE, workers=workers, timeout=timeout, memory_mb=memory_mb)
        self._boxed = boxed

    def parsable(self, answers: Sequence[str]) -> list[bool]:
        """Whether each gold answer can be parsed within the limits and then equals itself."""
        return self._all_done(_GRADABLE, answers)

    def _question(self, response: str, answer: str) -> tuple[Hashable, ...] | Verdict:
        final = final_answer(response)
        if final is None or (self._boxed and not final.boxed):
            return Verdict("unparsable", 0.0, "no final answer")
        return *final, answer


class ChoiceVerifier(Verifier):
    r"""Grades multiple choice: the letter a response settles on (`hpt.verify.choice.chosen_letter`) against the gold
    letter. A response that settles on none, or on several, is unparsable.
    """

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory_mb: int = 1024) -> None:
        super().__init__(_GRADE_CHOICE, _GRADABLE_CHOICE, workers=workers, timeout=timeout, memory_mb=memory_mb)

    def parsable(self, answers: Sequence[str]) -> list[bool]:
        """Whether each gold answer is a letter."""
        return self._all_done(_GRADABLE_CHOICE, answers)


class FunctionVerifier(Verifier):
    """Asks `function`, "module:function", called as f(response, answer) in the worker processes.

    It returns a bool or a number in [0, 1], the score; a score of 1 is correct, a lower one incorrect. A function that
    cannot be imported is a ConfigError on entry. What it raises ends the run with an HptError: a broken reward must not
    pass for a wrong answer.
    """

    def __init__(self, function: str, workers: int = 2, timeout: float = 5.0, memory_mb: int = 1024) -> None:
        super().__init__(function, workers=workers, timeout=timeout, memory_mb=memory_mb)

    def _verdict(self, outcome: Outcome, answer: str) -> Verdict:
        if outcome.kind == "exceeded":
            return Verdict("timeout", 0.0, f"exceeded {outcome.value}")
        where = f"verify.function {self._function!r}, asked about a response to the gold answer {_shorten(answer)},"
        if outcome.kind == "failed":
            raise HptError(f"{where} raised {outcome.value}")
        score = outcome.value
        if not isinstance(score, int | float) or not math.isfinite(score) or not 0 <= score <= 1:
            raise HptError(f"{where} returned {score!r}; a score is a bool or a number from 0 to 1")
        return Verdict("correct" if score == 1 else "incorrect", float(score))


def make_verifier(settings: VerifyConfig) -> Verifier:
    """The verifier that a recipe's `verify` section describes; ConfigError where its function cannot be had."""
    if settings.function is None:
        return MathVerifier(settings.workers, settings.timeout, settings.memory_mb, boxed=settings.boxed)
    resolve(settings.function, field="verify.function", arguments=["response", "answer"])
    return FunctionVerifier(settings.function, settings.workers, settings.timeout, settings.memory_mb)


def _shorten(answer: str) -> str:
    return repr(answer if len(answer) <= 100 else answer[:100] + "...")
