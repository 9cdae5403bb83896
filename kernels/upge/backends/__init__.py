"""The backends, and the choice among them.

`triton` and `torch` are workspaces for the same passes over chunks of tokens (`passes.py`). `reference` is independent
of them: float64 and plain autograd.
"""

from __future__ import annotations

import importlib.util

import torch

from . import plan
from .chunked import ChunkedWorkspace
from .workspace import MakeWorkspace

NAMES = ("auto", "triton", "torch", "reference")


def workspace_class(backend: str, device: torch.device, *, sharded: bool) -> MakeWorkspace | None:
    """The workspace class of a backend, or None for the reference. "auto" takes triton on a GPU, torch elsewhere.

    sharded: whether the vocabulary is, over the ranks of a group.

    Raises ValueError where the name is unknown or the device cannot run it.
    """
    if backend not in NAMES:
        raise ValueError(f"backend: must be one of {', '.join(map(repr, NAMES))}; got {backend!r}")
    if backend == "reference":
        return None
    missing = _what_triton_needs(device)
    if backend == "triton" and missing:
        raise ValueError(f"backend: 'triton' {missing}; use 'torch' (any device) or 'auto'")
    if backend == "triton" or (backend == "auto" and not missing and device.type == "cuda"):
        from .triton import ShardedTritonWorkspace, TritonWorkspace  # imports triton

        return ShardedTritonWorkspace if sharded else TritonWorkspace
    return ChunkedWorkspace


def _what_triton_needs(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return 'needs the package triton, which is not installed (pip install "upge[triton]")'
    if device.type != "cuda" and not plan.INTERPRETED:
        return f"needs tensors on a CUDA device (or TRITON_INTERPRET=1 before importing upge, for tests); got {device}"
    return None
