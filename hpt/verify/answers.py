"""The check that a verifier can use the gold answers of a data set, before anything is trained or sampled."""

from __future__ import annotations

from collections.abc import Sequence

from hpt.config.sections.rewards import VERIFIER
from hpt.data.questions import Question
from hpt.support.errors import DataError
from hpt.verify.verifier import Verifier


def check_answers(verifier: Verifier, questions: Sequence[Question], source: str) -> None:
    """DataError where the verifier could not recognise a right response to a question of `source`."""
    answers = [question.answer for question in questions if question.answer is not None]
    if len(answers) < len(questions):
        first = next(question for question in questions if question.answer is None)
        raise DataError(
            f"{source}, {first.named} has no answer, which the verifier needs; {len(questions) - len(answers)} of "
            f"{len(questions)} questions have none. To do without it: `rewards` that do not list {VERIFIER!r}, and "
            "gate.reads, if the gate reads P"
        )
    usable = verifier.parsable(answers)
    unusable = [question for question, fine in zip(questions, usable, strict=True) if not fine]
    if unusable:
        first = unusable[0]
        field = f"field {first.place.answer!r}" if first.place else "its answer"
        raise DataError(
            f"{source}, {first.named}: {field} is {first.answer!r}, which the verifier cannot parse within "
            f"its limits (verify.timeout); {len(unusable)} "
            f"of {len(questions)} questions have the same problem. Fix or remove them, or use your own verify.function"
        )
