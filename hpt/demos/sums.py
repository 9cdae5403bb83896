"""Prepares `hpt train sums`: sums that the start model solves always, sometimes or never, and their demonstrations.

The start model is that of the demo with a shorter warm-up. It solves sums of one digit nearly always, of two and three
digits sometimes, and sums with the sign `&` never, as it was taught to decline them.
"""

from __future__ import annotations

from hpt.config.schema import Config
from hpt.demos.adder import make_missing_model
from hpt.demos.addition import KNOWN, NEW, Grades, make_questions
from hpt.demos.files import check_places, write_missing_questions

GRADES: Grades = {
    "1-digit": (1, KNOWN),
    "2-digit": (2, KNOWN),
    "3-digit": (3, KNOWN),
    "2-digit &": (2, NEW),
    "3-digit &": (3, NEW),
}
TRAIN_QUESTIONS_PER_GRADE = 256
EVAL_QUESTIONS_PER_GRADE = 48
WARMUP_STEPS = 280
WARMUP_DIGITS = {1: 0.2, 2: 0.5, 3: 0.3}
"""For each number of digits, the share of the warm-up sums that have it."""
WRONG = 0.4
"""Share of wrong demonstrations that `prepare_wrong` makes."""


def prepare(config: Config) -> None:
    """Makes the model folder and the question files of `config` where they are missing, from `config.seed`."""
    _prepare(config, wrong=0.0)


def prepare_wrong(config: Config) -> None:
    """Like `prepare`, but a share WRONG of the training demonstrations has a mistake."""
    _prepare(config, wrong=WRONG)


def _prepare(config: Config, *, wrong: float) -> None:
    check_places(config)
    train, held_out = make_questions(
        config.seed, train=TRAIN_QUESTIONS_PER_GRADE, held_out=EVAL_QUESTIONS_PER_GRADE, grades=GRADES, wrong=wrong
    )
    write_missing_questions(config, train, held_out)
    make_missing_model(config, held_out, WARMUP_STEPS, WARMUP_DIGITS)
