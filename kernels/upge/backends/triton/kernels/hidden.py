"""E W, the GEMM over the vocabulary, with operands loaded by pointers. dh is a multiple of it (`scatter.py`).

The result has few tiles, and each sums over all of V. So the sum is split into parts. Each part gives a partial
product, and these are added in order afterwards. The split depends only on V.
"""

import triton
import triton.language as tl

from .dot import add_dot


@triton.jit(do_not_specialize=["M", "V"])
def hidden_kernel(
    exps,  # (M, exps_stride), 0 past V
    weight,  # (V, D), rows weight_stride apart
    partial,  # out (splits, M, D) fp32
    M,  # a multiple of BM
    V,
    D,
    weight_stride,
    exps_stride,  # a multiple of BK
    length,  # of a part of the vocabulary, a multiple of BK
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (M / BM, ceil(D / BN), splits)."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    part = tl.program_id(2)
    k = tl.arange(0, BK)
    e_rows = rows.to(tl.int64)
    # Past the end, read the first columns again. Unlike a minimum, a remainder keeps loads wide.
    w_columns = columns % D
    first = part * length
    product = tl.zeros([BM, BN], tl.float32)
    for start in range(first, tl.minimum(first + length, V), BK):
        entries = start + k
        e = tl.load(exps + e_rows[:, None] * exps_stride + entries[None, :])
        # Past V, E is 0, so any finite row of W will do.
        w_rows = tl.minimum(entries, V - 1).to(tl.int64)
        w = tl.load(weight + w_rows[:, None] * weight_stride + w_columns[None, :])
        product = add_dot(product, e, w.to(e.dtype), PRECISION)
    out = partial + (part.to(tl.int64) * M + e_rows[:, None]) * D + columns[None, :]
    tl.store(out, product, mask=(columns < D)[None, :])
