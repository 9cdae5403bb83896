"""Counts the bytes of the tensors that are alive, operation by operation: on real tensors and on those without data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is entered: `now`, the bytes of all live storages of one kind of device, and their `peak`.

    A storage counts once, however many tensors view it, from the operation that made it until it is freed. Tensors
    that were there before count from `add` on. What an operation allocates and frees within itself is not seen.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self._known: set[int] = set()

    def add(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or tensor.device.type != self.device:
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                weakref.finalize(storage, self._forget, key, size)
                self.now += size
        self.peak = max(self.peak, self.now)

    def restart_peak(self) -> None:
        self.peak = self.now

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        return result
