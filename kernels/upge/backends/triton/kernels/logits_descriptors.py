"""The forward GEMM, with operands loaded by tensor descriptors: persistent programs, each with a share of the tiles.

On sm_90 a descriptor is a TMA load: one thread asks for a whole tile, and no thread computes addresses. Since a program
goes on to its next tile, that tile's operands are on their way while the epilogue of the last one runs. What becomes of
a tile is in `logits_epilogue.py`; E is stored by descriptors too. Loads past V and D read 0.
"""

import triton
import triton.language as tl

from .dot import add_dot
from .logits_epilogue import epilogue


@triton.jit(do_not_specialize=["M", "V"])
def logits_descriptors_kernel(
    hidden,  # descriptor of (M, D) in blocks (BM, BK)
    weight,  # descriptor of (V, D) in blocks (BN, BK)
    bias,  # this and the following as in `logits.py`
    targets,
    inverse_temperature,
    anchor,
    target_logit,
    target_slope,
    exps,  # descriptor of (M, exps_stride) in blocks (BM, BN / PARTS)
    distances,  # the same
    sums,
    moments,
    tops,
    M,
    V,
    D,
    softcap,
    inverse_softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_DISTANCES: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (programs,). Programs that run at the same time share few tiles of the weight, which stay in the L2."""
    row_tiles = M // BM
    for i in tl.range(tl.program_id(0), row_tiles * tl.cdiv(V, BN), tl.num_programs(0), flatten=True):
        first_row, tile = i % row_tiles * BM, i // row_tiles
        product = tl.zeros([BM, BN], tl.float32)
        for k in range(0, D, BK):
            h = hidden.load([first_row, k])
            w = weight.load([tile * BN, k])
            product = add_dot(product, h, w.T, PRECISION)
        s, m, t = epilogue(
            product, first_row, tile * BN, tl.arange(0, BM), bias, targets, inverse_temperature, anchor,
            target_logit, target_slope, exps, distances, V, 0, softcap, inverse_softcap,
            HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES, True, False, PARTS, BM, BN,
        )  # fmt: skip
        slots = tile * M + first_row + tl.arange(0, BM)
        tl.store(sums + slots, s)
        tl.store(moments + slots, m)
        tl.store(tops + slots, t)
