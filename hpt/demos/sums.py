"""Prepares `hpt train sums`: sums for comparing methods, with few demonstrations.

The start model is smaller than the demo's, and was warmed up on sums with mistakes: each column may be wrong. So it
samples right and wrong responses to sums of one to three digits, and RL can gain by itself. Sums with the sign `&` it
never solves, as it was taught to decline them: only demonstrations explain them. Demonstrations are scarce: 32 of the
256 questions of a grade have one. Held-out questions also ask for sums of one digit, which nothing is trained on.
"""

from __future__ import annotations

from hpt.config.schema import Config
from hpt.demos.adder import WarmUp, make_missing_model
from hpt.demos.addition import KNOWN, NEW, Grades, make_questions
from hpt.demos.files import check_places, write_missing_questions

GRADES: Grades = {"1-digit": (1, KNOWN), "2-digit": (2, KNOWN), "3-digit": (3, KNOWN), "2-digit &": (2, NEW)}
UNTRAINED = "1-digit"
"""The grade that no training question has."""
TRAIN_QUESTIONS_PER_GRADE = 256
DEMONSTRATIONS_PER_GRADE = 32
EVAL_QUESTIONS_PER_GRADE = 24
WARM_UP = WarmUp(steps=1000, digit_shares={1: 0.1, 2: 0.4, 3: 0.5}, slips=0.35, layers=2, width=96)
WRONG = 0.4
"""Share of wrong demonstrations that `prepare_wrong` makes."""


def prepare(config: Config) -> None:
    """Makes the model folder and the question files of `config` where they are missing, from `config.seed`."""
    _prepare(config, wrong=0.0)


def prepare_wrong(config: Config) -> None:
    """Like `prepare`, but a share WRONG of the demonstrations has a mistake."""
    _prepare(config, wrong=WRONG)


def _prepare(config: Config, *, wrong: float) -> None:
    check_places(config)
    train, held_out = make_questions(
        config.seed, train=TRAIN_QUESTIONS_PER_GRADE, held_out=EVAL_QUESTIONS_PER_GRADE, grades=GRADES, wrong=wrong
    )
    write_missing_questions(config, _with_few_demonstrations(train), held_out)
    make_missing_model(config, held_out, WARM_UP)


def _with_few_demonstrations(questions: list[dict[str, str]]) -> list[dict[str, str]]:
    """The questions of the grades that are trained on; the first few of each grade keep their demonstration."""
    kept = []
    for grade in GRADES:
        if grade == UNTRAINED:
            continue
        for number, question in enumerate(each for each in questions if each["grade"] == grade):
            if number >= DEMONSTRATIONS_PER_GRADE:
                del question["demonstration"]
            kept.append(question)
    return kept
