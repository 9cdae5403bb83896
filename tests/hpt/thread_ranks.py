"""Ranks played by threads: what collectives do, without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from hpt.support.distributed import World

R = TypeVar("R")


class _Shared:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.values: list[Any] = [None] * size


class _ThreadWorld(World):
    shared: _Shared

    def gather(self, value: Any) -> list[Any]:
        self.shared.values[self.rank] = value
        self.shared.barrier.wait()
        values = list(self.shared.values)
        self.shared.barrier.wait()
        return values


def on_ranks(size: int, work: Callable[[World], R]) -> list[R]:
    """What `work` returns on each of so many ranks."""
    shared = _Shared(size)

    def play(rank: int) -> R:
        own = _ThreadWorld(rank, size)
        object.__setattr__(own, "shared", shared)
        return work(own)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(play, range(size)))
