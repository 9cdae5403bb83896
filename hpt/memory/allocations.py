"""Counts the bytes of live tensors operation by operation, also of tensors on the meta device, which hold no data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocationTracker(TorchDispatchMode):
    """Context in which the bytes of all live tensors on one type of device are counted.

    `current` and `peak` are in bytes. A storage counts once, however many tensors view it, from the operation that
    makes it until it is freed. Tensors made before the context count from their `add` on. What an operation allocates
    and frees internally is not seen.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.current = self.peak = 0
        self._known: set[int] = set()

    def add(self, tensors: Iterable[Any]) -> None:
        """Counts the storages of those tensors that are on the device; anything else is ignored."""
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor) or tensor.device.type != self.device:
                continue
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes()
            if address not in self._known:
                self._known.add(address)
                weakref.finalize(storage, self._remove, address, size)
                self.current += size
        self.peak = max(self.peak, self.current)

    def reset_peak(self) -> None:
        self.peak = self.current

    def _remove(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.current -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.add(tree_leaves(result))
        return result
