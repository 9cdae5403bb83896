"""dW += E^T (scale h): the GEMM over the chunk's tokens, added to the sum over chunks.

Each tile of dW belongs to one program, which reads it, adds the chunk's product in fp32 and writes it back.
"""

import triton
import triton.language as tl

from .dot import add_dot
from .split import joined, rounded


@triton.jit
def _add(high, low, product, entries, columns, V, D, HAS_LOW: tl.constexpr):
    """Add the product to its entries of the sum."""
    places = entries.to(tl.int64)[:, None] * D + columns[None, :]
    inside = (entries < V)[:, None] & (columns < D)[None, :]
    if HAS_LOW:
        upper = tl.load(high + places, mask=inside, other=0)
        total = joined(upper, tl.load(low + places, mask=inside, other=0)) + product
        bits = rounded(total, 8)
        tl.store(high + places, (bits >> 16).to(tl.int16), mask=inside)
        tl.store(low + places, (bits >> 8).to(tl.int8), mask=inside)
    else:
        tl.store(high + places, tl.load(high + places, mask=inside, other=0.0) + product, mask=inside)


@triton.jit
def weight_kernel(
    exps,  # (M, exps_stride)
    hidden,  # (M, D): scale * h in the dtype of exps
    high,  # in and out (V, D): fp32, or where HAS_LOW its upper 16 bits as int16
    low,  # in and out (V, D) int8: the next eight bits; used where HAS_LOW
    M,
    V,
    D,
    exps_stride,  # at least V rounded up to BM
    HAS_LOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,  # add in two halves: the old and new values of a wide tile do not fit the registers
):
    """Grid (ceil(D / BN), ceil(V / BM)). Neighbours in launch order share a strip of E."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    entries = tl.program_id(1) * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    h_columns = columns % D  # unlike a minimum, a remainder keeps loads wide
    product = tl.zeros([BM, BN], tl.float32)
    for start in range(0, M, BK):
        rows = (start + k).to(tl.int64)
        live = (start + k) < M
        e = tl.load(exps + rows[:, None] * exps_stride + entries[None, :], mask=live[:, None], other=0.0)
        h = tl.load(hidden + rows[:, None] * D + h_columns[None, :], mask=live[:, None], other=0.0)
        product = add_dot(product, tl.trans(e), h, PRECISION)
    if SPLIT:
        left, right = tl.split(tl.permute(tl.reshape(product, (BM, 2, BN // 2)), (0, 2, 1)))
        first = tl.program_id(0) * BN + tl.arange(0, BN // 2)
        _add(high, low, left, entries, first, V, D, HAS_LOW)
        _add(high, low, right, entries, first + BN // 2, V, D, HAS_LOW)
    else:
        _add(high, low, product, entries, columns, V, D, HAS_LOW)
