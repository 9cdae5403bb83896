"""The order in which questions are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise


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
        return shuffled_epochs(self.n_questions, self.seed, range(start, start + self.batch_size))

    def epoch(self, step: int) -> float:
        """How many epochs have been seen after training step `step`."""
        return step * self.batch_size / self.n_questions


@dataclass(frozen=True)
class MixedOrder:
    """As `QuestionOrder`, over the questions of several sources, one after the other, mixed by their weights.

    sizes: questions of each source. weights: positive, relative to each other.

    Each source has its own shuffled epochs. With p its share of the weights, every batch has p * batch_size of its
    questions, rounded down or up so that batches have their size and the share holds in the long run.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    batch_size: int
    seed: int

    def batch(self, step: int) -> list[int]:
        """Indices into the questions of all sources, for training step `step`, counted from 1."""
        if step < 1:
            raise ValueError(f"training steps count from 1, got {step}")
        before = [0] * len(self.sizes)
        for earlier in range(1, step):
            before = [total + count for total, count in zip(before, self.counts(earlier), strict=True)]
        indices: list[int] = []
        for source, (start, count) in enumerate(zip(before, self.counts(step), strict=True)):
            first = sum(self.sizes[:source])
            own_seed = self.seed + (source << 31)  # a run's seed is below 2^31
            positions = range(start, start + count)
            indices += [first + index for index in shuffled_epochs(self.sizes[source], own_seed, positions)]
        return indices

    def counts(self, step: int) -> list[int]:
        """How many questions of each source are in the batch of training step `step`.

        The exact numbers p * batch_size lie end to end on a line, and a source has as many questions as there are
        points step * 0.618..., plus any integer, in its part (systematic sampling). These points are spread evenly over
        the steps, so a source's total after many steps stays within a few questions of its share.
        """
        point = step * _GOLDEN % _ONE
        up_to = [-((point - end) // _ONE) for end in self._ends]  # points of the line before each end
        return [after - before for before, after in pairwise(up_to)]

    @cached_property
    def _ends(self) -> list[int]:
        """Where the parts of the sources end on the line, from 0 to `batch_size`, in units of 1 / _ONE."""
        weights = [Fraction(str(weight)) for weight in self.weights]
        shares = [self.batch_size * total / sum(weights) for total in accumulate(weights)]
        return [0, *(int(share * _ONE) for share in shares)]


def make_order(
    sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int
) -> QuestionOrder | MixedOrder:
    """The order of one source or several; arguments as for `MixedOrder`."""
    if len(sizes) == 1:
        return QuestionOrder(sizes[0], batch_size, seed)
    return MixedOrder(tuple(sizes), tuple(weights), batch_size, seed)


_ONE = 2**64
_GOLDEN = 0x9E3779B97F4A7C15  # _ONE (sqrt(5) - 1) / 2, to the nearest odd integer


def shuffled_epochs(n: int, seed: int, positions: Sequence[int]) -> list[int]:
    """The indices 0 to n - 1 that stand at `positions` of an endless row of shuffled epochs."""
    indices = []
    for position in positions:
        epoch, offset = divmod(position, n)
        indices.append(_shuffled(n, seed, epoch)[offset])
    return indices


@lru_cache(maxsize=16)
def _shuffled(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The indices 0 to n - 1, sorted by a hash: unlike a library's shuffle, the same in every version."""

    def key(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=16).digest()

    return tuple(sorted(range(n), key=key))
