"""dW += E^T (factor h), the GEMM over the chunk's tokens, with operands loaded by tensor descriptors.

Persistent programs, as in `logits_descriptors.py`. The sum is read and written by descriptors too. Loads past V and D
read 0, and stores there are left out.
"""

import triton
import triton.language as tl

from .accumulate import accumulate
from .dot import add_dot


@triton.jit(do_not_specialize=["M", "V"])
def weight_descriptors_kernel(
    exps,  # descriptor of (M, exps_stride) in blocks (BK, BM)
    hidden,  # descriptor of (M, D) in blocks (BK, BN): factor * h in the dtype of exps
    high,  # in and out, descriptors of (V, D) in blocks (BM, BN / PARTS), see `accumulate.py`
    low,
    M,  # a multiple of BK
    V,
    D,
    FIRST: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (programs,). Programs that run at the same time share strips of E."""
    column_tiles = tl.cdiv(D, BN)
    for i in tl.range(tl.program_id(0), column_tiles * tl.cdiv(V, BM), tl.num_programs(0), flatten=True):
        column, entry = i % column_tiles * BN, i // column_tiles * BM
        product = tl.zeros([BM, BN], tl.float32)
        for k in range(0, M, BK):
            e = exps.load([k, entry])
            h = hidden.load([k, column])
            product = add_dot(product, e.T, h, PRECISION)
        accumulate(product, high, low, entry, column, V, D, True, FIRST, True, PARTS, BM, BN)
