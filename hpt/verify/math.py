r"""Mathematical answers, compared by math-verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from hpt.verify.extract import final_answer
from hpt.verify.verdict import Verdict
from hpt.verify.verifier import Verifier

if TYPE_CHECKING:
    from hpt.config.sections.rollout import VerifyConfig


class MathVerifier(Verifier):
    r"""Grades mathematical answers with math-verify (LaTeX and plain expressions, compared by sympy).

    The answer of a response is the content of its last `\boxed{...}`. If that box is empty, not closed or longer than
    2,000 characters, the response is unparsable. In a response without a box, math-verify looks for an answer ("the
    answer is ...", else the last formula or number) in the last 2,000 characters; with `boxed` such a response is
    unparsable. Gold answers may be boxed, in dollar signs, or numbers like `4.5e33`.
    """

    grade = "hpt.verify.math_grading:grade"
    gradable = "hpt.verify.math_grading:gradable"

    def __init__(self, workers: int = 2, timeout: float = 5.0, memory_mb: int = 1024, *, boxed: bool = False) -> None:
        super().__init__(workers, timeout, memory_mb)
        self._boxed = boxed

    @classmethod
    def from_settings(cls, settings: VerifyConfig) -> Self:
        return cls(settings.workers, settings.timeout, settings.memory_mb, boxed=settings.boxed)

    def _arguments(self, response: str, answer: str) -> tuple[Any, ...] | Verdict:
        final = final_answer(response)
        if final is None or (self._boxed and not final.boxed):
            return Verdict("unparsable", 0.0, "no final answer")
        return final.text, final.boxed, answer
