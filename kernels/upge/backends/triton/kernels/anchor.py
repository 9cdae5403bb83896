"""The anchor of each row: about its target's raw logit, as a gathered dot product.

Log-probabilities are sums of exp(z_j - a), and any a near the target's logit makes them numbers that fp32 can hold. So
the anchor need not be the target's logit to the last bit, and it is not: this dot product adds in another order than
the GEMM, which computes the target's logit together with all others (see `logits.py`).
"""

import triton
import triton.language as tl

from .raw_logit import raw_logit


@triton.jit
def anchor_kernel(
    hidden,  # (M, D)
    weight,  # (V, D), rows weight_stride apart
    bias,  # (V,)
    targets,  # (M,) int64
    anchor,  # out (M,) fp32
    M,
    D,
    weight_stride,
    softcap,
    inverse_softcap,
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
    u, _ = raw_logit(tl.sum(products, 1), b, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP)
    tl.store(anchor + rows, u, mask=live)
