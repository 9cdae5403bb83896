"""The sum of dW over chunks for a 16-bit weight, in three bytes per entry (see `kernels/split.py`)."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .kernels.split import finish_kernel

FINISH_BLOCK = 8192


class SplitSum:
    """The sum of a (V, D) gradient in bf16 or fp16: `high` has its upper 16 bits, `low` the next eight."""

    def __init__(self, like: Tensor):
        self.total = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        self.high = self.total.view(torch.int16)
        self.low = torch.zeros(like.shape, dtype=torch.int8, device=like.device)

    def finish(self, factor: Tensor | None, dtype: torch.dtype, keep: bool) -> Tensor:
        """factor () (None: 1) times the sum, in `dtype`. Unless `keep`, the result replaces the sum if dtypes match."""
        in_place = not keep and dtype == self.total.dtype
        out = self.total if in_place else torch.empty(self.total.shape, dtype=dtype, device=self.low.device)
        factor = torch.ones((), dtype=torch.float32, device=out.device) if factor is None else factor.float()
        bits = out.view(torch.int16) if dtype == torch.bfloat16 else out
        grid = (triton.cdiv(out.numel(), FINISH_BLOCK),)
        finish_kernel[grid](self.high, self.low, factor, bits, out.numel(), BLOCK=FINISH_BLOCK)
        return out
