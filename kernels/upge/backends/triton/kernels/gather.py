"""A chunk's inputs side by side, padded to whole tiles, and the anchor of each row.

The anchor is about the target's raw logit, as a gathered dot product. Log-probabilities are sums of exp(z_j - a), and
any a near the target's logit makes them numbers that fp32 can hold. So the anchor need not be the target's logit to the
last bit, and it is not: this dot product adds in another order than the GEMM, which computes the target's logit
together with all others (see `logits_epilogue.py`).

Rows of padding repeat the last token. Their numbers are finite, and nothing reads them.
"""

import triton
import triton.language as tl

from .raw_logit import raw_logit


@triton.jit(do_not_specialize=["n", "V", "first_entry"])
def gather_kernel(
    rows,  # (n,) int64: the chunk's tokens
    hidden,  # (N, D)
    weight,  # (V, D), rows weight_stride apart: entries of the vocabulary from first_entry on
    bias,  # (V,)
    targets,  # (N,) integers
    temperature,  # (N,) fp32, read where HAS_TEMPERATURES
    chunk_hidden,  # out (M, D), in the dtype of the GEMM
    chunk_targets,  # out (M,) int32: rows of weight, -1 where another rank holds the target
    inverse_temperature,  # out (M,) fp32
    anchor,  # out (M,) fp32; 0 where another rank holds the target
    n,
    V,
    D,
    hidden_stride,
    weight_stride,
    first_entry,
    same_temperature,  # fp32: that of all tokens, unless HAS_TEMPERATURES
    softcap,
    inverse_softcap,
    HAS_TEMPERATURES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (M / ROWS,)."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.load(rows + tl.minimum(i, n - 1))
    # First of all: the division is a call, and what is alive across it is spilled.
    t = tl.zeros([ROWS], tl.float32) + same_temperature
    if HAS_TEMPERATURES:
        t = tl.load(temperature + row)
    tl.store(inverse_temperature + i, tl.div_rn(1.0, t))
    y = tl.load(targets + row).to(tl.int64) - first_entry
    here = (y >= 0) & (y < V)
    entry = tl.where(here, y, 0)
    places = i.to(tl.int64) * D
    products = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, D, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = (k < D)[None, :]
        h = tl.load(hidden + row[:, None] * hidden_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + entry[:, None] * weight_stride + k[None, :], mask=inside, other=0.0).to(tl.float32)
        products += h * w
        tl.store(chunk_hidden + places[:, None] + k[None, :], h.to(chunk_hidden.dtype.element_ty), mask=inside)
    b = 0.0
    if HAS_BIAS:
        b = tl.load(bias + entry).to(tl.float32)
    u, _ = raw_logit(tl.sum(products, 1), b, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP)
    tl.store(chunk_targets + i, tl.where(here, y, -1).to(tl.int32))
    tl.store(anchor + i, tl.where(here, u, 0.0))
