"""The sum of dW over chunks in three bytes an entry: a float32 without the last eight bits of its mantissa.

dW of a 16-bit weight has two bytes an entry, and a sum in fp32 beside it would need four more. Instead the upper 16
bits of the sum live in dW itself and the next eight in a buffer of one byte an entry; the weight kernel joins them in
registers, adds a chunk's product in fp32 and rounds to nearest even. With 16 significant bits a chunk loses at most
2^-16 of the sum, 1/256 of what the one rounding to bf16 loses that ends it (and 1/32 of a rounding to fp16). Two bytes
beside dW would keep fp32 whole, but the memory is better spent on chunks of twice as many tokens: each chunk reads and
writes all of the sum, which costs more time than its GEMM hides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192


@triton.jit
def joined(high, low):
    """fp32 from its upper 16 bits (int16) and the next eight (int8)."""
    bits = (high.to(tl.int32) << 16) | ((low.to(tl.int32) & 0xFF) << 8)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def rounded(x, DROP: tl.constexpr):
    """The bits of fp32 x, rounded to nearest even where the lowest DROP of them go; NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    even = bits + ((1 << (DROP - 1)) - 1) + ((bits >> DROP) & 1)
    return tl.where(x == x, even, 0x7FC00000)


@triton.jit
def finish_kernel(
    high,  # (n,) int16
    low,  # (n,) int8
    factor,  # () fp32
    out,  # out (n,): fp32, fp16 or the bits of bf16 as int16; may be `high`
    n,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(n / BLOCK),): the sum times a factor, rounded once to the dtype of `out`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x = joined(tl.load(high + i, mask=inside, other=0), tl.load(low + i, mask=inside, other=0)) * tl.load(factor)
    if out.dtype.element_ty == tl.int16:
        tl.store(out + i, (rounded(x, 16) >> 16).to(tl.int16), mask=inside)
    else:
        tl.store(out + i, x.to(out.dtype.element_ty), mask=inside)


class SplitSum:
    """The sum of a (V, D) gradient in bf16 or fp16."""

    def __init__(self, like: Tensor):
        self.total = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        self.high = self.total.view(torch.int16)
        self.low = torch.zeros(like.shape, dtype=torch.int8, device=like.device)

    def finish(self, factor: Tensor | None, dtype: torch.dtype, keep: bool) -> Tensor:
        """factor () (None: 1) times the sum in `dtype`. Unless it is to be kept, the result takes its place."""
        in_place = not keep and dtype == self.total.dtype
        out = self.total if in_place else torch.empty(self.total.shape, dtype=dtype, device=self.low.device)
        factor = torch.ones((), dtype=torch.float32, device=out.device) if factor is None else factor.float()
        bits = out.view(torch.int16) if dtype == torch.bfloat16 else out
        finish_kernel[(triton.cdiv(out.numel(), BLOCK),)](self.high, self.low, factor, bits, out.numel(), BLOCK=BLOCK)
        return out
