"""The processes of a run, as torchrun or the deepspeed launcher started them, and how they exchange Python objects.

Only small objects travel here (token ids, scores, errors); gradients and weights are the optimizer engine's concern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from hpt.support import launch
from hpt.support.errors import HptError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class World:
    """This process is number `rank` of `size`; only rank 0 writes records and prints.

    Every method is a collective: all ranks must call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise HptError(f"another rank is gone or does not answer: {error}") from error
        return values

    def agree(self, work: Callable[[], T]) -> list[T]:
        """What `work` returned on each rank. If it fails on one, all ranks raise, so that none waits forever.

        The rank that failed raises its own error; the others raise an HptError of the same kind that quotes it.
        """
        if self.size == 1:
            return [work()]
        own: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Exception as error:
            own = error
        failed = (_kind(own), f"{type(own).__name__}: {own}") if own else None
        outcomes = self.gather((result, failed))
        if own:
            raise own
        for rank, (_, failure) in enumerate(outcomes):
            if failure:
                kind, text = failure
                raise kind(f"rank {rank} failed: {text}")
        return [outcome for outcome, _ in outcomes]

    def once(self, work: Callable[[], T]) -> T:
        """What `work` returned on rank 0; the other ranks do not call it."""
        return self.agree(work if self.main else lambda: None)[0]  # type: ignore[return-value]

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of `items`: every `size`-th."""
        return items[self.rank :: self.size]

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """One result per item, in their order. Rank r works on items r, r + size, ..., which may be none."""
        results: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.agree(lambda: work(self.own(items)))):
            results[rank :: self.size] = part
        return results


ALONE = World()  # a run of one process


def _kind(error: Exception) -> type[HptError]:
    return type(error) if isinstance(error, HptError) else HptError


def launched() -> World:
    """The rank and size that the launcher gave this process, before it is connected; without a launcher, size 1."""
    return World(launch.rank(), launch.world_size())
