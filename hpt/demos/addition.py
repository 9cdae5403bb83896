"""Addition questions with demonstrations that add column by column.

A demonstration writes the question as a sum, then adds the columns from the right, with the carry:

    347&285=        ->      347+285
                            7+5+0=12
                            4+8+1=13
                            3+2+1=6
                            \\boxed{632}

`&` means the same as `+`, but the start model was taught to answer it with `?`. Its rollouts on such a question are
never right, so rewards teach it nothing and only the demonstration does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

KNOWN, NEW, DECLINED = "+", "&", "?"
GRADES: Grades = {"2-digit": (2, KNOWN), "3-digit": (3, KNOWN), "2-digit &": (2, NEW), "3-digit &": (3, NEW)}
"""For each grade, the number of digits of both terms and the sign between them."""

Grades = Mapping[str, tuple[int, str]]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Sum:
    """One addition question."""

    terms: Pair
    sign: str = KNOWN

    @property
    def prompt(self) -> str:
        return f"{self.terms[0]}{self.sign}{self.terms[1]}="

    @property
    def answer(self) -> str:
        return str(sum(self.terms))

    @property
    def demonstration(self) -> str:
        return self.worked()

    def worked(self, slip: int | None = None) -> str:
        """The demonstration. With `slip`, the result of that column, counted from the right, is wrong by one."""
        a, b = self.terms
        lines, carry, total = [f"{a}+{b}"], 0, 0
        for place, (x, y) in enumerate(zip(reversed(str(a)), reversed(str(b)), strict=True)):
            column = int(x) + int(y) + carry
            if place == slip:
                column += 1 if column % 10 < 9 else -1
            lines.append(f"{x}+{y}+{carry}={column}")
            carry = column // 10
            total += column % 10 * 10**place
        total += carry * 10 ** len(str(a))
        return "\n".join([*lines, f"\\boxed{{{total}}}"])


def pairs(digits: int, draw: random.Random, held_out: Set[Pair] = frozenset()) -> Iterator[Pair]:
    """Endless random pairs of numbers with `digits` digits each, none of them in `held_out`."""
    low, high = 10 ** (digits - 1) if digits > 1 else 0, 10**digits
    while True:
        pair = draw.randrange(low, high), draw.randrange(low, high)
        if pair not in held_out:
            yield pair


def make_questions(
    seed: int, *, train: int, held_out: int, grades: Grades = GRADES, wrong: float = 0.0
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out questions, each a dict of id, prompt, answer, demonstration and grade.

    train, held_out: questions per grade. wrong: share of the training demonstrations with a mistake in one column.
    No pair of terms with several digits appears twice, so no such held-out sum is trained on, with either sign.
    """
    draw = random.Random(f"questions {seed}")
    slips = random.Random(f"slips {seed}")
    taken: set[Pair] = set()
    questions: dict[str, list[dict[str, str]]] = {"eval": [], "train": []}
    for name, count in (("eval", held_out), ("train", train)):
        for grade, (digits, sign) in grades.items():
            for terms, _ in zip(pairs(digits, draw, taken), range(count), strict=False):
                if digits > 1:
                    taken.add(terms)
                question = Sum(terms, sign)
                slip = slips.randrange(digits) if name == "train" and slips.random() < wrong else None
                questions[name].append(
                    {
                        "id": f"{name}-{len(questions[name])}",
                        "prompt": question.prompt,
                        "answer": question.answer,
                        "demonstration": question.worked(slip),
                        "grade": grade,
                    }
                )
    return questions["train"], questions["eval"]
