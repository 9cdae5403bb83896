"""Backends of one algebra, and the choice among them.

`triton` and `torch` are workspaces of the same chunked passes (workspace.py); `reference` is apart, in float64.
"""

from __future__ import annotations

import importlib.util

import torch

from . import plan
from .chunked import Chunked
from .workspace import Workspace

NAMES = ("auto", "triton", "torch", "reference")


def choose(name: str, device: torch.device) -> type[Workspace] | None:
    """The workspace of the backend called `name`, None for the reference; "auto" takes the best that `device` has."""
    if name not in NAMES:
        raise ValueError(f"backend: must be one of {', '.join(map(repr, NAMES))}; got {name!r}")
    missing = _why_not_triton(device)
    if name == "triton" and missing:
        raise ValueError(f"backend: 'triton' {missing}; use 'torch' (any device) or 'auto'")
    if name == "triton" or (name == "auto" and not missing and device.type == "cuda"):
        from .triton import Fused

        return Fused
    return None if name == "reference" else Chunked


def _why_not_triton(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    if device.type != "cuda" and not plan.INTERPRETED:
        return (
            f"needs tensors on a CUDA device (or TRITON_INTERPRET=1 before upge is imported, for tests); got {device}"
        )
    return None
