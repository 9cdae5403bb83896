"""How much memory a call takes."""

from __future__ import annotations

import torch

from .backends import chunked
from .backends.plan import extra_bytes, plan_for

VECTORS = 100  # bytes per token of log-probabilities, coefficients and other numbers of one value per token


def memory_bytes(
    tokens: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    device: str = "cuda",
    trains_weight: bool = True,
) -> int:
    """Peak bytes of `fused_policy_loss` and its backward pass, beside hidden and weight; with dh and dW.

    tokens:        those that are evaluated: counted, and with a gradient.
    width, vocabulary, dtype: of the head's weight (V, D), and of hidden (N, D).
    device:        "cuda" for the Triton kernels (as shipped for sm_90), "cpu" for the torch backend.
    trains_weight: whether weight requires a gradient.

    Raises ValueError or TypeError naming the argument, what it got and what is allowed.
    """
    for name, value, least in (("tokens", tokens, 0), ("width", width, 1), ("vocabulary", vocabulary, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: must be an int of at least {least}; got {value!r}")
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise TypeError(f"dtype: must be torch.bfloat16, torch.float16 or torch.float32; got {dtype!r}")
    if device not in ("cuda", "cpu"):
        raise ValueError(f"device: must be 'cuda' or 'cpu'; got {device!r}")
    hidden, weight = tokens * width, vocabulary * width if trains_weight else 0
    if device == "cuda":
        extra = extra_bytes(plan_for(dtype, dtype, (9, 0), width), tokens, vocabulary, width, sums_weight=trains_weight)
        return (hidden + weight) * dtype.itemsize + sum(extra.values()) + VECTORS * tokens
    return _cpu_bytes(tokens, width, vocabulary, dtype, hidden, weight) + VECTORS * tokens


def _cpu_bytes(tokens: int, width: int, vocabulary: int, dtype: torch.dtype, hidden: int, weight: int) -> int:
    """The torch backend sums dW in float32, and casts it to the weight's dtype when the chunk is gone."""
    narrow = dtype != torch.float32
    granules = -(-tokens // chunked.GRANULE) * chunked.GRANULE
    rows = min(chunked.chunk_rows(vocabulary, torch.device("cpu")), granules)
    chunk = rows * (vocabulary + 3 * width) * 4
    chunk += 2 * min(chunked.BLOCK_BYTES, rows * vocabulary * 4)
    chunk += min(chunked.SLAB_BYTES, vocabulary * width * 4) if narrow else 0
    sums = hidden * (2 if dtype == torch.bfloat16 else 4) + weight * 4
    return sums + max(chunk, weight * dtype.itemsize if narrow else 0)
