"""The anchor of each row: its target's logit, as a gathered dot product.

Any number near z_y would do. Log-probabilities are sums of exp(z_j - a) over j != y, plus exp(a - a) = 1 for the target
itself. So the target's logit enters once, here, and has the rounding of a dot product of D terms.
"""

import triton
import triton.language as tl

from .scaled_logit import scaled_logit


@triton.jit
def anchor_kernel(
    hidden,  # (M, D)
    weight,  # (V, D), rows weight_stride apart
    bias,  # (V,)
    targets,  # (M,) int64
    inverse_temperature,  # (M,) fp32
    anchor,  # out (M,) fp32
    M,
    D,
    weight_stride,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(M / ROWS),)."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    live = rows < M
    y = tl.load(targets + rows, mask=live, other=0)
    products = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = live[:, None] & (k < D)[None, :]
        h = tl.load(hidden + rows[:, None] * D + k[None, :], mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + y[:, None] * weight_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
        products += h * w
    b = 0.0
    if HAS_BIAS:
        b = tl.load(bias + y).to(tl.float32)
    inverse = tl.load(inverse_temperature + rows, mask=live, other=1.0)
    z = scaled_logit(tl.sum(products, 1), b, inverse, softcap, HAS_BIAS, HAS_SOFTCAP)
    tl.store(anchor + rows, z, mask=live)
