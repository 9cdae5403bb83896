"""The processes of a run, as torchrun or the deepspeed launcher started them: what one knows, all may know.

Only small Python objects travel here (token ids, scores, errors); gradients and weights are DeepSpeed's matter. Every
method is a meeting of all ranks: each rank must call the same ones in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hpt.config.schema import Config
from hpt.support.errors import ConfigError, HptError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class World:
    """`size` processes, of which this is number `rank`; rank 0 alone writes records and prints."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on every rank, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, value)
        except RuntimeError as error:
            raise HptError(f"another rank is gone or does not answer: {error}") from error
        return found

    def agree(self, work: Callable[[], T]) -> list[T]:
        """What `work` returned on each rank. Where it fails on one, all ranks raise: none waits for one that gave up.

        The rank that failed raises its own error, the others an HptError of its kind that quotes it.
        """
        if self.size == 1:
            return [work()]
        own: Exception | None = None
        result: Any = None
        try:
            result = work()
        except Exception as error:
            own = error
        outcomes = self.gather((result, own and (_kind(own), f"{type(own).__name__}: {own}")))
        if own:
            raise own
        for rank, (_, failure) in enumerate(outcomes):
            if failure:
                kind, text = failure
                raise kind(f"rank {rank} failed: {text}")
        return [outcome for outcome, _ in outcomes]

    def once(self, work: Callable[[], T]) -> T:
        """What `work` returned on rank 0, the only one to do it."""
        return self.agree(work if self.main else lambda: None)[0]  # type: ignore[return-value]

    def own(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of `items`: every `size`-th."""
        return items[self.rank :: self.size]

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """One result an item, in their order; each rank works on every `size`-th item, perhaps on none."""
        results: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.agree(lambda: work(self.own(items)))):
            results[rank :: self.size] = part
        return results


ALONE = World()


def _kind(error: Exception) -> type[HptError]:
    return type(error) if isinstance(error, HptError) else HptError


def launched() -> World:
    """This process among those of the launcher, before they are connected; a world of one without a launcher."""
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def connected(config: Config) -> Iterator[World]:
    """The ranks of a run, connected. Objects travel by gloo on the CPU, gradients on a GPU by NCCL.

    A rank that dies closes its connections, which ends the others; `deepspeed.timeout` bounds the wait for one that
    hangs.
    ConfigError where `engine: local` was launched as several processes.
    """
    world = launched()
    if config.engine == "local":
        if world.size > 1:
            raise ConfigError(f'engine = "local" is one process, but {world.size} were launched; use engine=deepspeed')
        yield world
        return
    if world.size > 1 and ":" in config.device:
        raise ConfigError(
            f"device = {config.device!r}: {world.size} processes have a GPU each; allowed are auto and cpu"
        )
    if dist.is_initialized():
        raise HptError("engine: deepspeed connects its processes itself, but torch.distributed is in use already")
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed asks for it even in a world of one
    backend = "gloo"
    if torch.cuda.is_available() and config.device != "cpu":
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    store = dist.HashStore() if world.size == 1 else None
    timeout = timedelta(minutes=config.deepspeed.timeout)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    try:
        yield world
    except BaseException:
        if world.size == 1:
            dist.destroy_process_group()
        # Of several, one may still be waiting: the launcher ends it once this process has left.
        raise
    dist.destroy_process_group()
