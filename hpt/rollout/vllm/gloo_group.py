"""A gloo group of the trainer and the workers of a vLLM server, apart from the process groups that either has."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

MESSAGE_BYTES = 64 << 20
TRAINER = 0
"""Rank of the trainer, which sends; worker number i has rank i + 1."""


def listening_store(address: str, world_size: int, timeout: float) -> TCPStore:
    """The trainer's store, at a free port of `address` only: by default torch listens on all addresses."""
    listener = socket.create_server((address, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=False,
    )


def all_arrived(store: TCPStore, workers: int) -> bool:
    """Whether so many workers are about to join a group over this store."""
    return store.check([_arrived(worker + 1) for worker in range(workers)])


def _arrived(rank: int) -> str:
    return f"arrived/{rank}"


def store_at(address: str, port: int, world_size: int, timeout: float) -> TCPStore:
    """A worker's connection to the trainer's store."""
    return TCPStore(
        address,
        port,
        world_size,
        is_master=False,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,
        use_libuv=False,
    )


class GlooGroup:
    """One member of the group. Blocks until all are there.

    own_address: where this member listens. timeout: seconds, of joining and of each message. RuntimeError if another
    member is gone or too late.
    """

    def __init__(self, store: TCPStore, rank: int, world_size: int, own_address: str, timeout: float) -> None:
        gloo: Any = ProcessGroupGloo  # torch has types for a part of it only
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=own_address)]
        options._timeout = timedelta(seconds=timeout)
        store.set(_arrived(rank), "")
        self._store: TCPStore | None = store  # the trainer's is the server of it
        self._group: Any = gloo(PrefixStore("hpt", store), rank, world_size, options)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Sends the trainer's contiguous CPU tensor into the workers' of its shape, in messages of limited size."""
        if self._group is None:
            raise RuntimeError("the group is closed")
        options = BroadcastOptions()
        options.rootRank = TRAINER
        for part in tensor.view(-1).split(MESSAGE_BYTES // tensor.element_size()):
            self._group.broadcast([part], options).wait()

    def close(self) -> None:
        """Ends the connections: whoever waits for this member gets an error at once."""
        self._group = self._store = None  # gloo has no other way


def address_towards(host: str, port: int) -> str:
    """This machine's address on the way to `host`. OSError if there is no way."""
    with socket.create_connection((host, port), timeout=10) as connection:
        return str(connection.getsockname()[0])


def free_port(address: str) -> int:
    """A port of `address` that nothing listens on now."""
    with socket.create_server((address, 0)) as listener:
        return int(listener.getsockname()[1])
