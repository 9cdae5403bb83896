"""Memory of the fused loss beside hidden states and weights: one chunk of logits, and the sums of its gradients."""

from __future__ import annotations

import torch
from upge.backends import chunked
from upge.backends.tiling import extra_bytes, tiling_for


def loss_bytes(tokens: int, width: int, vocabulary: int, dtype: torch.dtype, device: str, *, head_trained: bool) -> int:
    """Peak bytes of `upge.fused_policy_loss` and its backward pass on (tokens, width) hidden states.

    On a GPU the Triton kernels run, and `upge` itself counts their memory. On a CPU plain PyTorch runs, sums dW in
    float32, and casts it to the weight's dtype.
    """
    hidden, head = tokens * width, vocabulary * width if head_trained else 0
    vectors = 100 * tokens  # log-probabilities, coefficients and other numbers per token
    if device == "cuda":
        extra = extra_bytes(tiling_for(dtype, (9, 0), width), tokens, vocabulary, width, sums_weight=head_trained)
        return (hidden + head) * dtype.itemsize + sum(extra.values()) + vectors
    narrow = dtype != torch.float32
    rows = min(chunked.chunk_rows(vocabulary, torch.device(device)), -(-tokens // chunked.GRANULE) * chunked.GRANULE)
    chunk = rows * (vocabulary + 3 * width) * 4
    chunk += 2 * min(chunked.BLOCK_BYTES, rows * vocabulary * 4)
    chunk += min(chunked.SLAB_BYTES, vocabulary * width * 4) if narrow else 0
    sums = hidden * (2 if dtype == torch.bfloat16 else 4) + head * 4
    return sums + max(chunk, head * dtype.itemsize if narrow else 0) + vectors
