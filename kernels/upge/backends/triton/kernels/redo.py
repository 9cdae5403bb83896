"""The logits again, of rows with a bad anchor (`reanchor.py`), with another one.

Such rows are rare. So few programs look for them, and each does a share of a row tile's vocabulary. They write flagged
rows alone: the bits of the others do not depend on what is beside them. The blocks are smaller than those of the first
pass, and a width of any size will do.
"""

import triton
import triton.language as tl

from .logits import tile_product
from .logits_epilogue import epilogue


@triton.jit(do_not_specialize=["M", "V", "tiles"])
def redo_kernel(
    hidden,  # the arguments of `logits_kernel`, and
    weight,
    bias,
    targets,
    inverse_temperature,
    anchor,
    redo,  # (M,) int8: rows to compute again
    target_logit,
    target_slope,
    exps,
    distances,
    sums,
    moments,
    tops,
    M,
    V,
    D,
    weight_stride,
    exps_stride,
    tiles,  # of the first pass
    softcap,
    inverse_softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_DISTANCES: tl.constexpr,
    BLOCKS: tl.constexpr,  # blocks of BN entries in a tile of the first pass
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (M / BM, shares of the vocabulary)."""
    first_row = tl.program_id(0) * BM
    flagged = tl.load(redo + first_row + tl.arange(0, BM)) != 0
    if tl.max(flagged.to(tl.int32), 0) != 0:
        for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
            s = tl.zeros([BM], tl.float32)
            m = tl.zeros([BM], tl.float32)
            t = tl.full([BM], float("-inf"), tl.float32)
            for block in range(BLOCKS):
                first = (tile * BLOCKS + block) * BN
                product = tile_product(
                    hidden, weight, first_row, first, V, D, weight_stride, False, PRECISION, BM, BN, BK
                )
                block_s, block_m, block_t = epilogue(
                    product, first_row, first, flagged, bias, targets, inverse_temperature, anchor,
                    target_logit, target_slope, exps, distances, V, exps_stride, softcap, inverse_softcap,
                    HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES, False, True, PARTS, BM, BN,
                )  # fmt: skip
                s += block_s
                m += block_m
                t = tl.maximum(t, block_t)
            slots = tile * M + first_row + tl.arange(0, BM)
            tl.store(sums + slots, s, mask=flagged)
            tl.store(moments + slots, m, mask=flagged)
            tl.store(tops + slots, t, mask=flagged)
