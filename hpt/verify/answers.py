"""The check that a verifier can use the gold answers of a data set, before anything is trained or sampled."""

from __future__ import annotations

from collections.abc import Sequence

from hpt.data.questions import Question
from hpt.support.errors import DataError
from hpt.verify.verifier import Verifier


def check_answers(verifier: Verifier, questions: Sequence[Question], source: str) -> None:
    """DataError where the verifier could not recognise a right response to a question of `source`."""
    unusable = unusable_answers(verifier, questions)
    if unusable:
        first = unusable[0]
        field = f"field {first.place.answer!r}" if first.place else "its answer"
        raise DataError(
            f"{source}, {first.named}: {field} is {first.answer!r}, which the verifier cannot parse within "
            f"its limits (verify.timeout); {len(unusable)} "
            f"of {len(questions)} questions have the same problem. Fix or remove them, or use your own verify.function"
        )


def unusable_answers(verifier: Verifier, questions: Sequence[Question]) -> list[Question]:
    """The questions with an answer that the verifier cannot parse."""
    with_answer = [question for question in questions if question.answer is not None]
    usable = verifier.parsable([question.gold for question in with_answer])
    return [question for question, fine in zip(with_answer, usable, strict=True) if not fine]
