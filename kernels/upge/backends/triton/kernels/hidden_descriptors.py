"""E W, the GEMM over the vocabulary, with operands loaded by tensor descriptors. See `hidden.py` for the split sum.

Persistent programs, as in `logits_descriptors.py`. Loads past V and D read 0, and stores past D are left out.
"""

import triton
import triton.language as tl

from .dot import add_dot


@triton.jit
def _store(out, product, row, column, PARTS: tl.constexpr, BM: tl.constexpr, n: tl.constexpr):
    """In parts: a whole fp32 tile does not fit the shared memory beside the operands."""
    if PARTS > 1:
        left, right = tl.split(tl.permute(tl.reshape(product, (BM, 2, n // 2)), (0, 2, 1)))
        _store(out, left, row, column, PARTS // 2, BM, n // 2)
        _store(out, right, row, column + n // 2, PARTS // 2, BM, n // 2)
    else:
        out.store([row, column], product)


@triton.jit(do_not_specialize=["M"])
def hidden_descriptors_kernel(
    exps,  # descriptor of (M, exps_stride) in blocks (BM, BK); 0 past V
    weight,  # descriptor of (V, D) in blocks (BK, BN)
    partial,  # out, descriptor of (splits M, D) fp32 in blocks (BM, BN / PARTS)
    M,  # a multiple of BM
    D,
    length,  # of a part of the vocabulary, a multiple of BK
    splits,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (programs,). Programs that run at the same time share rows of the weight."""
    row_tiles, column_tiles = M // BM, tl.cdiv(D, BN)
    for i in tl.range(tl.program_id(0), row_tiles * column_tiles * splits, tl.num_programs(0), flatten=True):
        row = i % row_tiles * BM
        column = i // row_tiles % column_tiles * BN
        part = i // (row_tiles * column_tiles)
        product = tl.zeros([BM, BN], tl.float32)
        for k in range(0, length, BK):
            e = exps.load([row, part * length + k])
            w = weight.load([part * length + k, column])
            product = add_dot(product, e, w.to(e.dtype), PRECISION)
        _store(partial, product, part * M + row, column, PARTS, BM, BN)
