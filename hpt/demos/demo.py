"""Prepares `hpt train demo`: a small model that can add, and questions that it can and cannot solve."""

from __future__ import annotations

from hpt.config.schema import Config
from hpt.demos.adder import WarmUp, make_missing_model
from hpt.demos.addition import make_questions
from hpt.demos.files import check_places, write_missing_questions

TRAIN_QUESTIONS_PER_GRADE = 400
EVAL_QUESTIONS_PER_GRADE = 64
WARM_UP = WarmUp(steps=500, digit_shares={1: 0.2, 2: 0.4, 3: 0.4})


def prepare(config: Config) -> None:
    """Makes the model folder and the question files of `config` where they are missing, from `config.seed`."""
    check_places(config)
    train, held_out = make_questions(config.seed, train=TRAIN_QUESTIONS_PER_GRADE, held_out=EVAL_QUESTIONS_PER_GRADE)
    write_missing_questions(config, train, held_out)
    make_missing_model(config, held_out, WARM_UP)
