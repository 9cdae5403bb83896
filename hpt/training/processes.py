"""The process group of a run: set up before anything is loaded, closed when the run ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from hpt.config.schema import Config
from hpt.support.distributed import World, launched
from hpt.support.errors import ConfigError, HptError


@contextmanager
def connected(config: Config) -> Iterator[World]:
    """Connects the ranks of a run. Objects and CPU tensors travel by gloo, GPU tensors by NCCL.

    A rank that dies closes its connections, which ends the others; `deepspeed.timeout` bounds the wait for one that
    hangs. ConfigError if several processes were launched with `engine: local`; HptError where they cannot be connected.
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
    alone = "LOCAL_RANK" not in os.environ
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed reads it even if there is one process
    backend = "gloo"
    if torch.cuda.is_available() and config.device != "cpu":
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    store = dist.HashStore() if world.size == 1 else None
    timeout = timedelta(minutes=config.deepspeed.timeout)
    try:
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    except dist.DistError as error:
        raise HptError(
            f"the run's processes cannot be connected: {str(error).splitlines()[0]}. Where another program has the "
            "port, choose a free one, as torchrun --standalone does by itself"
        ) from error
    try:
        yield world
    except BaseException:
        if world.size == 1:
            dist.destroy_process_group()
        # With several processes another rank may still be waiting: the launcher ends it once this process has left.
        raise
    finally:
        if alone:  # else accelerate would take this process for a launched one
            os.environ.pop("LOCAL_RANK", None)
    dist.destroy_process_group()
