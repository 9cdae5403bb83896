"""The sum of dW over chunks in three bytes per entry: float32 without the last eight bits of its mantissa.

dW of a 16-bit weight has two bytes per entry, and a separate sum in fp32 would need four more. Instead, dW itself
holds the upper 16 bits of the sum, and a buffer of one byte per entry the next eight. The weight kernel joins them in
registers, adds a chunk's product in fp32 and rounds to nearest even. That leaves 16 significant bits, so a chunk loses
at most 2^-16 of the sum: 1/256 of what the final rounding to bf16 loses, and 1/32 of a rounding to fp16. Two bytes
more would hold all of fp32, but that memory is better spent on chunks of twice as many tokens: each chunk reads
and writes the whole sum, which takes more time than its GEMM hides.
"""

import triton
import triton.language as tl

EXPONENT = tl.constexpr(-(1 << 23))  # sign and exponent of an fp32


@triton.jit
def joined(high, low):
    """fp32 from its upper 16 bits (int16) and the next eight (uint8)."""
    bits = (high.to(tl.int32) << 16) | (low.to(tl.int32) << 8)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def sixteen_digits(x):
    """The bits of fp32 x, rounded to 16 binary digits, so that the lowest eight bits are 0.

    With m the power of two in x, x + 256 m has a last digit of 2^-15 m, so the addition rounds to nearest even, and
    subtracting 256 m is exact. That is fewer instructions than rounding the bits, which would also have to look for
    NaN. From 2^120 on 256 m overflows, and the result is NaN, as it is for infinities.
    """
    power = (x.to(tl.int32, bitcast=True) & EXPONENT).to(tl.float32, bitcast=True) * 256.0
    return ((x + power) - power).to(tl.int32, bitcast=True)


@triton.jit
def to_bfloat16(x):
    """The bits of bf16 as int16, of fp32 x rounded to nearest even. NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    even = bits + 0x7FFF + ((bits >> 16) & 1)
    return (tl.where(x == x, even, 0x7FC00000) >> 16).to(tl.int16)


@triton.jit
def finish_kernel(
    high,  # (n,) int16
    low,  # (n,) uint8
    factor,  # () fp32
    out,  # out (n,): fp32, fp16 or the bits of bf16 as int16; may be `high`
    n,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(n / BLOCK),). The sum times a factor, rounded once to the dtype of `out`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    x = joined(tl.load(high + i, mask=inside, other=0), tl.load(low + i, mask=inside, other=0)) * tl.load(factor)
    if out.dtype.element_ty == tl.int16:
        tl.store(out + i, to_bfloat16(x), mask=inside)
    else:
        tl.store(out + i, x.to(out.dtype.element_ty), mask=inside)
