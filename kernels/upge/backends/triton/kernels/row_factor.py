"""The gradient of the logits where it is a multiple of E: the factor of each row, and the entry of its target.

Without an entropy coefficient, with S the sum of E over the other entries and total = exp(z_y - a) + S,

    d loss / d z_j = -(g - k) E_j / total,   d loss / d z_y = (g S + k exp(z_y - a)) / total.

So E needs no pass. The factor -(g - k) / (total T) is multiplied into dh and into the operand of dW, and the target's
entry in E becomes -(g S + k exp(z_y - a)) / (g - k). With a soft-cap, E_j holds the slope of the cap as well.

Where g is almost k, the entry would be almost infinite. There |g - k| counts as 2^-22 of the larger of the two, which
changes the gradient of the other entries by as little.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def row_factor_kernel(
    exps,  # in and out (n, exps_stride); only the target's entry is written
    targets,  # (n,) int32; below 0 where another rank holds the target
    target_slope,  # (n,) fp32: the cap's slope at the target; read where HAS_SOFTCAP
    share,  # (n,) fp32: exp(z_y - a)
    others,  # (n,) fp32: S
    inverse_temperature,  # (n,) fp32
    g,  # (n,) fp32: d loss / d l
    k,  # (n,) fp32: d loss / d lse; read where HAS_K
    factor,  # out (n,) fp32
    n,
    exps_stride,
    HAS_SOFTCAP: tl.constexpr,
    HAS_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(n / BLOCK),)."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = rows < n
    y = tl.load(targets + rows, mask=live, other=0)
    p = tl.load(share + rows, mask=live, other=1.0)
    s = tl.load(others + rows, mask=live, other=0.0)
    difference = tl.load(g + rows, mask=live, other=0.0)
    entry = -s
    if HAS_K:
        g_row, k_row = difference, tl.load(k + rows, mask=live, other=0.0)
        least = tl.maximum(tl.abs(g_row), tl.abs(k_row)) * 2.0**-22
        difference = g_row - k_row
        difference = tl.where(tl.abs(difference) < least, least, difference)
        entry = -(g_row * s + k_row * p) / tl.where(difference == 0.0, 1.0, difference)
    if HAS_SOFTCAP:
        entry *= tl.load(target_slope + rows, mask=live, other=0.0)
    inverse = tl.load(inverse_temperature + rows, mask=live, other=1.0)
    tl.store(factor + rows, -difference / (p + s) * inverse, mask=live)
    here = live & (y >= 0)  # of a sharded vocabulary, another rank may hold the target
    tl.store(exps + rows.to(tl.int64) * exps_stride + y, entry.to(exps.dtype.element_ty), mask=here)
