"""dW += E^T (factor h), the GEMM over the chunk's tokens, with operands loaded by pointers."""

import triton
import triton.language as tl

from .accumulate import accumulate
from .dot import add_dot


@triton.jit(do_not_specialize=["M", "V"])
def weight_kernel(
    exps,  # (M, exps_stride)
    hidden,  # (M, D): factor * h in the dtype of exps
    high,  # in and out (V, D), see `accumulate.py`
    low,
    M,  # a multiple of BK
    V,
    D,
    exps_stride,  # at least V rounded up to BM
    HAS_LOW: tl.constexpr,
    FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (ceil(D / BN), ceil(V / BM)). Neighbours in launch order share a strip of E."""
    column, entry = tl.program_id(0) * BN, tl.program_id(1) * BM
    entries = entry + tl.arange(0, BM)
    h_columns = (column + tl.arange(0, BN)) % D  # unlike a minimum, a remainder keeps loads wide
    k = tl.arange(0, BK)
    product = tl.zeros([BM, BN], tl.float32)
    for start in range(0, M, BK):
        rows = (start + k).to(tl.int64)[:, None]
        e = tl.load(exps + rows * exps_stride + entries[None, :])
        h = tl.load(hidden + rows * D + h_columns[None, :])
        product = add_dot(product, tl.trans(e), h, PRECISION)
    accumulate(product, high, low, entry, column, V, D, HAS_LOW, FIRST, False, PARTS, BM, BN)
