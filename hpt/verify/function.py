"""A user-defined function as a verifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from hpt.support.errors import RewardError
from hpt.support.named_functions import resolve
from hpt.verify.pool import Outcome
from hpt.verify.verdict import Verdict
from hpt.verify.verifier import Verifier, shorten

if TYPE_CHECKING:
    from hpt.config.sections.rollout import VerifyConfig


class FunctionVerifier(Verifier):
    """Calls `function`, a "module:function", as f(response, answer) in the worker processes.

    It returns the score, a bool or a number in [0, 1]: 1 is correct, less is incorrect. A function that cannot be
    imported is a ConfigError on entry. What it raises ends the run with a RewardError, so that a broken function does
    not pass for a wrong answer.
    """

    def __init__(self, function: str, workers: int = 2, timeout: float = 5.0, memory_mb: int = 1024) -> None:
        self.grade = function
        super().__init__(workers, timeout, memory_mb)

    @classmethod
    def from_settings(cls, settings: VerifyConfig) -> Self:
        assert settings.function is not None
        resolve(settings.function, field="verify.function", arguments=["response", "answer"])
        return cls(settings.function, settings.workers, settings.timeout, settings.memory_mb)

    def _verdict(self, outcome: Outcome, answer: str) -> Verdict:
        if outcome.kind == "exceeded":
            return Verdict("timeout", 0.0, f"exceeded {outcome.value}")
        if outcome.kind == "died":
            return Verdict("timeout", 0.0, outcome.value)
        what = f"verify.function {self.grade!r}, called on a response to the gold answer {shorten(answer)},"
        if outcome.kind == "failed":
            raise RewardError(f"{what} raised {outcome.value}")
        score = outcome.value
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise RewardError(f"{what} returned {score!r}; a score is a bool or a number from 0 to 1")
        return Verdict("correct" if score == 1 else "incorrect", float(score))
