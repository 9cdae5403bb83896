"""The forward GEMM, with operands loaded by pointers: a program per tile of tokens by vocabulary entries.

What becomes of a tile of h W^T is in `logits_epilogue.py`. The rows of a chunk are padded to whole tiles (`gather.py`),
so no kernel has an edge there.
"""

import triton
import triton.language as tl

from .dot import add_dot
from .logits_epilogue import epilogue


@triton.jit
def tile_product(
    hidden,
    weight,
    first_row,
    first,
    V,
    D,
    weight_stride,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """A tile of h W^T, (BM, BN) fp32. Rows past V repeat the last one: masks would cost registers."""
    rows = tl.arange(0, BM)
    k = tl.arange(0, BK)
    # 64-bit offsets to the tile's corner, 32-bit ones within it.
    h_pointers = hidden + first_row.to(tl.int64) * D + (rows[:, None] * D + k[None, :])
    w_rows = tl.minimum(tl.arange(0, BN), V - 1 - first)
    w_pointers = weight + first.to(tl.int64) * weight_stride + (w_rows[None, :] * weight_stride + k[:, None])
    product = tl.zeros([BM, BN], tl.float32)
    for start in range(0, D, BK):
        if EVEN_D:
            h = tl.load(h_pointers)
            w = tl.load(w_pointers)
        else:
            h = tl.load(h_pointers, mask=(start + k)[None, :] < D, other=0.0)
            w = tl.load(w_pointers, mask=(start + k)[:, None] < D, other=0.0)
        product = add_dot(product, h, w.to(h.dtype), PRECISION)
        h_pointers += BK
        w_pointers += BK
    return product


@triton.jit(do_not_specialize=["M", "V"])
def logits_kernel(
    hidden,  # (M, D)
    weight,  # (V, D), rows weight_stride apart; in a dtype that the one of hidden holds
    bias,  # (V,)
    targets,  # (M,) int32; below 0 where another rank holds the target
    inverse_temperature,  # (M,) fp32
    anchor,  # (M,) fp32: a T, a raw logit
    target_logit,  # out (M,) fp32: the target's raw logit
    target_slope,  # out (M,) fp32: the cap's slope there; written where HAS_SOFTCAP and KEEP
    exps,  # out (M, exps_stride): E, times the cap's slope; 0 at the target and past V; written where KEEP
    distances,  # out (M, exps_stride): (exp(|z - a|) - 1) sign(z - a); written where KEEP_DISTANCES
    sums,  # out (tiles, M) fp32: sum of exp(z - a) over the tile, without the target
    moments,  # out (tiles, M) fp32: sum of exp(z - a) (z - a) / log(2), without the target
    tops,  # out (tiles, M) fp32: the largest raw logit, without the target's
    M,  # a multiple of BM
    V,
    D,
    weight_stride,
    exps_stride,  # ceil(V / BN) BN
    softcap,
    inverse_softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_DISTANCES: tl.constexpr,
    EVEN_D: tl.constexpr,  # D is a multiple of BK
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Grid (M / BM, ceil(V / BN)). Programs that share a tile of the weight are neighbours in launch order."""
    first_row, tile = tl.program_id(0) * BM, tl.program_id(1)
    first = tile * BN
    product = tile_product(hidden, weight, first_row, first, V, D, weight_stride, EVEN_D, PRECISION, BM, BN, BK)
    s, m, t = epilogue(
        product, first_row, first, tl.arange(0, BM), bias, targets, inverse_temperature, anchor,
        target_logit, target_slope, exps, distances, V, exps_stride, softcap, inverse_softcap,
        HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES, False, False, PARTS, BM, BN,
    )  # fmt: skip
    slots = tile * M + first_row + tl.arange(0, BM)
    tl.store(sums + slots, s)
    tl.store(moments + slots, m)
    tl.store(tops + slots, t)
