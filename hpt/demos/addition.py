"""Sums worked column by column, with a sign that the start model knows or one it declines.

A demonstration first writes the question as a sum, then adds column by column from the right, carrying:

    347&285=        ->      347+285
                            7+5+0=12
                            4+8+1=13
                            3+2+1=6
                            \\boxed{632}

`&` means what `+` means. The start model has been taught to decline it with `?`, so its rollouts are never right
there: rewards say nothing about such a question, and its demonstration says it all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

KNOWN, NEW, DECLINED = "+", "&", "?"
GRADES: Grades = {"2-digit": (2, KNOWN), "3-digit": (3, KNOWN), "2-digit &": (2, NEW), "3-digit &": (3, NEW)}
"""Of each grade: how many digits both terms have, and the sign between them."""

Grades = Mapping[str, tuple[int, str]]
Pair = tuple[int, int]


@dataclass(frozen=True)
class Sum:
    """One question and its worked answer."""

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
        """The demonstration; with a `slip` that column, counted from the right, comes out one too large or small."""
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
    """Endless pairs of numbers of `digits` digits, none of them in `held_out`."""
    low, high = 10 ** (digits - 1) if digits > 1 else 0, 10**digits
    while True:
        pair = draw.randrange(low, high), draw.randrange(low, high)
        if pair not in held_out:
            yield pair


def make_questions(
    seed: int, *, train: int, held_out: int, grades: Grades = GRADES, wrong: float = 0.0
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """`train` and `held_out` questions of every grade: rows of id, prompt, answer, demonstration and grade.

    No two terms of several digits meet twice, so such a held-out question is new whatever its sign. A share `wrong`
    of the training demonstrations slips in a column.
    """
    draw = random.Random(f"questions {seed}")
    slips = random.Random(f"slips {seed}")
    taken: set[Pair] = set()
    rows: dict[str, list[dict[str, str]]] = {"eval": [], "train": []}
    for name, count in (("eval", held_out), ("train", train)):
        for grade, (digits, sign) in grades.items():
            for terms, _ in zip(pairs(digits, draw, taken), range(count), strict=False):
                if digits > 1:
                    taken.add(terms)
                question = Sum(terms, sign)
                slip = slips.randrange(digits) if name == "train" and slips.random() < wrong else None
                rows[name].append(
                    {
                        "id": f"{name}-{len(rows[name])}",
                        "prompt": question.prompt,
                        "answer": question.answer,
                        "demonstration": question.worked(slip),
                        "grade": grade,
                    }
                )
    return rows["train"], rows["eval"]
