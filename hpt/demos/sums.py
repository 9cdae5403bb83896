"""What `hpt train sums` needs: sums that the start model solves always, sometimes and never, and their demonstrations.

The start model is the demo's, warmed up more briefly on one to three digits. It solves one digit nearly always, two and
three digits sometimes, and sums with the sign `&` never: it has learnt to decline them.
"""

from __future__ import annotations

from hpt.config.schema import Config
from hpt.demos.addition import KNOWN, NEW, Grades, make_questions
from hpt.demos.demo import make_missing

GRADES: Grades = {
    "1-digit": (1, KNOWN),
    "2-digit": (2, KNOWN),
    "3-digit": (3, KNOWN),
    "2-digit &": (2, NEW),
    "3-digit &": (3, NEW),
}
TRAIN_QUESTIONS_A_GRADE = 256
EVAL_QUESTIONS_A_GRADE = 48
WARMUP_STEPS = 280
WARMUP_DIGITS = {1: 0.2, 2: 0.5, 3: 0.3}
WRONG = 0.4
"""Share of demonstrations with a slip, where a recipe asks for `prepare_wrong`."""


def prepare(config: Config) -> None:
    """Makes the model folder and the question files of `config` where they are missing; `config.seed` decides all."""
    _prepare(config, wrong=0.0)


def prepare_wrong(config: Config) -> None:
    """As `prepare`, with wrong demonstrations among those of the training questions."""
    _prepare(config, wrong=WRONG)


def _prepare(config: Config, *, wrong: float) -> None:
    questions = make_questions(
        config.seed, train=TRAIN_QUESTIONS_A_GRADE, held_out=EVAL_QUESTIONS_A_GRADE, grades=GRADES, wrong=wrong
    )
    make_missing(config, questions, WARMUP_STEPS, WARMUP_DIGITS)
