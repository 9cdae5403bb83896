"""Prepares `hpt train word-problems`: SmolLM2-135M-Instruct and small word problems in the style of GSM8K.

A third of the training questions have a demonstration. Held-out questions also have a grade of three steps, which no
training question has. `prepare_wrong` puts a mistake into some 40% of the demonstrations, and carries it to the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpt.config.schema import Config
from hpt.demos.files import check_places, write_missing_questions
from hpt.demos.smollm2 import MODEL, convert_model

TRAIN_QUESTIONS_PER_GRADE = 48
DEMONSTRATIONS_PER_GRADE = 16
EVAL_QUESTIONS_PER_GRADE = 12
WRONG = 0.4
"""Share of wrong demonstrations that `prepare_wrong` makes."""
NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Laura", "Tom")
THINGS = ("apples", "books", "cards", "coins", "cookies", "marbles", "pencils", "shells", "stamps", "stickers")


@dataclass(frozen=True)
class Problem:
    """A question, and the calculations that solve it in their order: (left, sign, right).

    A left or right of None stands for the result before.
    """

    question: str
    steps: tuple[tuple[int | None, str, int | None], ...]

    def worked(self, slip: int | None = None) -> tuple[str, int]:
        """The calculations in words, and the answer. The result of calculation `slip` is one too many."""
        done: list[str] = []
        result = 0
        for number, (left, sign, right) in enumerate(self.steps):
            a = result if left is None else left
            b = result if right is None else right
            result = SIGNS[sign](a, b) + (number == slip)
            done.append(f"{a} {sign} {b} = {result}")
        return f"{', '.join(done)}. \\boxed{{{result}}}", result


SIGNS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def prepare(config: Config) -> None:
    """Makes the model folder and the question files of `config` where they are missing, from `config.seed`.

    HptError where the package of the weights, or one that reads them, is not installed.
    """
    _prepare(config, wrong=0.0)


def prepare_wrong(config: Config) -> None:
    """Like `prepare`, but a share WRONG of the demonstrations has a mistake."""
    _prepare(config, wrong=WRONG)


def _prepare(config: Config, *, wrong: float) -> None:
    check_places(config, MODEL)
    if not Path(config.model.path).exists():
        convert_model(Path(config.model.path))
    write_missing_questions(config, *make_questions(config.seed, wrong=wrong))


def make_questions(seed: int, *, wrong: float = 0.0) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out questions with different prompts.

    The questions do not depend on `wrong`, the share of training demonstrations with a mistake.
    """
    draw, slips = random.Random(seed), random.Random(seed)
    taken: set[str] = set()
    held_out = [
        _record(problem, grade, f"eval-{grade}-{number}")
        for grade in GRADES
        for number, problem in enumerate(_distinct(grade, EVAL_QUESTIONS_PER_GRADE, draw, taken))
    ]
    train = []
    for grade in GRADES:
        if grade == UNTRAINED:
            continue
        for number, problem in enumerate(_distinct(grade, TRAIN_QUESTIONS_PER_GRADE, draw, taken)):
            slip = slips.randrange(len(problem.steps)) if slips.random() < wrong else None
            record = _record(problem, grade, f"train-{grade}-{number}", slip)
            if number >= DEMONSTRATIONS_PER_GRADE:
                del record["demonstration"]
            train.append(record)
    return train, held_out


def _distinct(grade: str, count: int, draw: random.Random, taken: set[str]) -> list[Problem]:
    """`count` problems of a grade whose questions are not in `taken`, to which they are added."""
    problems: list[Problem] = []
    while len(problems) < count:
        problem = GRADES[grade](draw)
        if problem.question not in taken:
            taken.add(problem.question)
            problems.append(problem)
    return problems


def _record(problem: Problem, grade: str, name: str, slip: int | None = None) -> dict[str, str]:
    _, answer = problem.worked()
    demonstration, _ = problem.worked(slip)
    return {
        "id": name.replace(" ", "-"),
        "prompt": problem.question,
        "answer": str(answer),
        "demonstration": demonstration,
        "grade": grade,
    }


def _add(draw: random.Random) -> Problem:
    name, things, a, b = draw.choice(NAMES), draw.choice(THINGS), draw.randint(5, 40), draw.randint(5, 40)
    question = f"{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?"
    return Problem(question, ((a, "+", b),))


def _multiply(draw: random.Random) -> Problem:
    name, things, a, b = draw.choice(NAMES), draw.choice(THINGS), draw.randint(2, 9), draw.randint(2, 9)
    question = f"{name} has {a} boxes with {b} {things} each. How many {things} does {name} have?"
    return Problem(question, ((a, "*", b),))


def _multiply_and_add(draw: random.Random) -> Problem:
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    a, b, c = draw.randint(5, 20), draw.randint(2, 6), draw.randint(2, 9)
    question = (
        f"{name} has {a} {things} and buys {b} boxes with {c} {things} each. How many {things} does {name} have now?"
    )
    return Problem(question, ((b, "*", c), (a, "+", None)))


def _multiply_and_subtract(draw: random.Random) -> Problem:
    name, things, a, b = draw.choice(NAMES), draw.choice(THINGS), draw.randint(2, 6), draw.randint(2, 9)
    c = draw.randint(1, a * b - 1)
    question = f"{name} has {a} boxes with {b} {things} each and gives {c} {things} away. How many {things} are left?"
    return Problem(question, ((a, "*", b), (None, "-", c)))


def _three_steps(draw: random.Random) -> Problem:
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    a, b, c = draw.randint(5, 20), draw.randint(2, 6), draw.randint(2, 9)
    d = draw.randint(1, a)
    question = (
        f"{name} has {a} {things}, buys {b} boxes with {c} {things} each and gives {d} {things} away. "
        f"How many {things} are left?"
    )
    return Problem(question, ((b, "*", c), (a, "+", None), (None, "-", d)))


UNTRAINED = "three steps"
"""The grade that no training question has."""
GRADES: dict[str, Callable[[random.Random], Problem]] = {
    "add": _add,
    "multiply": _multiply,
    "multiply and add": _multiply_and_add,
    "multiply and subtract": _multiply_and_subtract,
    UNTRAINED: _three_steps,
}
