"""The sum of dW over chunks: in three bytes per entry for a 16-bit weight (see `kernels/split.py`), else in float32."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .kernels.split import finish_kernel

FINISH_BLOCK = 8192


class ChunkSum:
    """The sum of a (V, D) gradient. It has no numbers before the first chunk has begun it.

    high: float32, or for bf16 and fp16 the upper 16 bits of it, as int16.
    low:  for bf16 and fp16 the next eight bits, uint8; else None.
    """

    def __init__(self, like: Tensor):
        self.begun = False
        self.total = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        self.high, self.low = self.total, None
        if like.dtype.itemsize == 2:
            self.high = self.total.view(torch.int16)
            self.low = torch.empty(like.shape, dtype=torch.uint8, device=like.device)

    def finish(self, factor: Tensor | None, dtype: torch.dtype, keep: bool) -> Tensor:
        """factor () (None: 1) times the sum, in `dtype`. Unless `keep`, the result replaces the sum if dtypes match."""
        in_place = not keep and dtype == self.total.dtype
        if not self.begun:
            out = self.total if in_place else torch.empty(self.total.shape, dtype=dtype, device=self.total.device)
            return out.zero_()
        if self.low is None:
            return _finish_float32(self.total, factor, dtype, in_place)
        out = self.total if in_place else torch.empty(self.total.shape, dtype=dtype, device=self.low.device)
        factor = torch.ones((), dtype=torch.float32, device=out.device) if factor is None else factor.float()
        bits = out.view(torch.int16) if dtype == torch.bfloat16 else out
        grid = (triton.cdiv(out.numel(), FINISH_BLOCK),)
        finish_kernel[grid](self.high, self.low, factor, bits, out.numel(), BLOCK=FINISH_BLOCK)
        return out


def _finish_float32(total: Tensor, factor: Tensor | None, dtype: torch.dtype, in_place: bool) -> Tensor:
    if factor is None:
        return total.to(dtype, copy=not in_place)
    return total.mul_(factor) if in_place else (total * factor).to(dtype)
