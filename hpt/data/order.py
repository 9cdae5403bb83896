"""The order in which questions are trained on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class QuestionOrder:
    """Which questions each training step sees: a pure function of (seed, step), so resuming changes nothing.

    Each epoch is a shuffle of all questions; a batch may span two epochs or more.
    """

    n_questions: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_questions < 1 or self.batch_size < 1:
            raise ValueError(
                "need at least one question and a batch size of at least 1, "
                f"got {self.n_questions} and {self.batch_size}"
            )

    def batch(self, step: int) -> list[int]:
        """Indices of the `batch_size` questions of training step `step`, counted from 1."""
        if step < 1:
            raise ValueError(f"training steps count from 1, got {step}")
        start = (step - 1) * self.batch_size
        indices = []
        for position in range(start, start + self.batch_size):
            epoch, offset = divmod(position, self.n_questions)
            indices.append(_shuffled(self.n_questions, self.seed, epoch)[offset])
        return indices

    def epoch(self, step: int) -> float:
        """How many epochs have been seen after training step `step`."""
        return step * self.batch_size / self.n_questions


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The indices 0 to n - 1, sorted by a hash: unlike a library's shuffle, the same in every version."""

    def key(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=16).digest()

    return tuple(sorted(range(n), key=key))
