"""The forward GEMM: exp(z - a) of a tile of tokens by vocabulary entries, and its contribution to the row sums.

With an anchor a near the target's logit z_y, all that a row needs are sums over the other entries j != y:

    S = sum_j exp(z_j - a),   S' = S exp(a - z_y),   l = -log(1 + S'),   1 - p_y = S' / (1 + S')

and for the entropy m = sum_j exp(z_j - a) (z_j - a) (see `rows.py`). So one pass over the logits is enough, without a
running maximum. The logits never leave the registers. E = exp(z - a) is stored for the gradient GEMMs (in bf16 for bf16
operands, since bf16 has the exponents of fp32), and S and m are summed in fp32 before that rounding.

The target's logit comes from this GEMM as well. All logits of a row are then rounded alike, and equal ones are equal.
Rows whose anchor turns out to be bad (`reanchor.py`) are computed again with another one (REDO).

With a soft-cap, what is stored is E times the slope of the cap (`raw_logit.py`), since the gradient of h W^T + b is a
multiple of that. An entropy coefficient then also needs the distance d = z - a, which cannot be told from the product
(KEEP_DISTANCES). It is stored as (exp(|d|) - 1) sign(d), which bf16 holds with an error of 2^-8 min(1, |d|) in d.

exp(z - a) is 2^((u - a) log2(e) / T) with the raw logit u and the anchor as a raw logit. Partial sums go to one slot
per (row, vocabulary tile) and are added in a fixed order later, without atomics.
"""

import triton
import triton.language as tl

from .dot import add_dot
from .raw_logit import LOG2E, raw_logit


@triton.jit
def _epilogue(
    product,  # (BM, n) fp32: columns of a tile of h W^T
    first,  # its first vocabulary entry
    rows,  # (BM,): its rows, counted from the tile's first
    scale,  # (BM,): log2(e) / T
    a,  # (BM,): the anchor, a raw logit
    y,  # (BM,): the target
    has_target,  # whether the tile has the target of any of its rows
    bias,
    exps,  # this and the next three at the tile's first row
    distances,
    target_logit,
    target_slope,
    V,
    exps_stride,
    softcap,
    inverse_softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_DISTANCES: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    n: tl.constexpr,
):
    """Store E and the target's u; return the row sums of E and of E (z - a) / log(2), and the largest u.

    Sums and maximum leave the target out. Few tiles have a target or entries past V, so only those spend time on it.
    """
    if PARTS > 1:
        left, right = tl.split(tl.permute(tl.reshape(product, (BM, 2, n // 2)), (0, 2, 1)))
        s0, m0, t0 = _epilogue(
            left, first, rows, scale, a, y, has_target, bias, exps, distances, target_logit, target_slope,
            V, exps_stride, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES,
            PARTS // 2, BM, n // 2,
        )  # fmt: skip
        s1, m1, t1 = _epilogue(
            right, first + n // 2, rows, scale, a, y, has_target, bias, exps, distances, target_logit, target_slope,
            V, exps_stride, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES,
            PARTS // 2, BM, n // 2,
        )  # fmt: skip
        return s0 + s1, m0 + m1, tl.maximum(t0, t1)
    else:
        columns = first + tl.arange(0, n)
        b = 0.0
        if HAS_BIAS:
            b = tl.load(bias + tl.minimum(columns, V - 1)).to(tl.float32)[None, :]
        u, slope = raw_logit(product, b, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP)
        if has_target:
            own = columns[None, :] == y[:, None]
            here = (y >= first) & (y < first + n)
            tl.store(target_logit + rows, tl.sum(tl.where(own, u, 0.0), 1), mask=here)
            if HAS_SOFTCAP and KEEP:
                tl.store(target_slope + rows, tl.sum(tl.where(own, slope, 0.0), 1), mask=here)
            u = tl.where(own, float("-inf"), u)
        if first + n > V:
            u = tl.where((columns < V)[None, :], u, float("-inf"))
        exponent = (u - a[:, None]) * scale[:, None]
        e = tl.exp2(exponent)
        if KEEP:
            places = first + rows[:, None] * exps_stride + (columns - first)[None, :]
            tl.store(exps + places, (e * slope).to(exps.dtype.element_ty))
            if KEEP_DISTANCES:
                growth = tl.exp2(tl.minimum(tl.abs(exponent), 120.0)) - 1.0
                signed = tl.where(exponent < 0.0, -growth, growth)
                tl.store(distances + places, signed.to(exps.dtype.element_ty))
        # Where E is 0 its moment is 0, and not 0 * -inf.
        return tl.sum(e, 1), tl.sum(e * tl.maximum(exponent, -1e30), 1), tl.max(u, 1)


@triton.jit
def logits_kernel(
    hidden,  # (M, D)
    weight,  # (V, D), rows weight_stride apart; in a dtype that the one of hidden holds
    bias,  # (V,)
    targets,  # (M,) int64
    inverse_temperature,  # (M,) fp32
    anchor,  # (M,) fp32: a T, a raw logit
    redo,  # (M,) int8: rows to compute again; read where REDO
    target_logit,  # out (M,) fp32: the target's raw logit
    target_slope,  # out (M,) fp32: the cap's slope there; written where HAS_SOFTCAP and KEEP
    exps,  # out (M, exps_stride): E, times the cap's slope; 0 at the target and past V; written where KEEP
    distances,  # out (M, exps_stride): (exp(|z - a|) - 1) sign(z - a); written where KEEP_DISTANCES
    sums,  # out (M, tiles) fp32: sum of exp(z - a) over the tile, without the target
    moments,  # out (M, tiles) fp32: sum of exp(z - a) (z - a) / log(2), without the target
    tops,  # out (M, tiles) fp32: the largest raw logit, without the target's
    M,
    V,
    D,
    weight_stride,
    exps_stride,  # a multiple of BN
    tiles,  # ceil(V / BN)
    softcap,
    inverse_softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_DISTANCES: tl.constexpr,
    REDO: tl.constexpr,
    EVEN_D: tl.constexpr,  # D is a multiple of BK
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,  # run the epilogue on parts of the tile: all of its z and E do not fit the registers
):
    """Grid (ceil(M / BM), tiles). Programs that share a tile of the weight are neighbours in launch order.

    Rows past the end repeat the last row and write the same numbers to the same place. The same holds for rows that are
    only redone because another row of their tile is. So neither loads nor stores need masks, which cost registers.
    """
    first_row = tl.program_id(0) * BM
    rows = tl.minimum(tl.arange(0, BM), M - 1 - first_row)
    if REDO:
        flagged = tl.max(tl.load(redo + first_row + rows).to(tl.int32), 0)
        if flagged == 0:
            return
    tile = tl.program_id(1)
    first = tile * BN
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

    scale = tl.load(inverse_temperature + first_row + rows) * LOG2E
    a = tl.load(anchor + first_row + rows)
    y = tl.load(targets + first_row + rows).to(tl.int32)
    has_target = tl.max(((y >= first) & (y < first + BN)).to(tl.int32), 0) != 0
    exps += first_row.to(tl.int64) * exps_stride
    distances += first_row.to(tl.int64) * exps_stride
    PARTS: tl.constexpr = BN // (32 if HAS_BIAS or HAS_SOFTCAP else 64) if SPLIT else 1
    s, m, t = _epilogue(
        product, first, rows, scale, a, y, has_target, bias, exps, distances,
        target_logit + first_row, target_slope + first_row, V, exps_stride,
        softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES, PARTS, BM, BN,
    )  # fmt: skip
    slots = (first_row + rows) * tiles + tile
    tl.store(sums + slots, s)
    tl.store(moments + slots, m)
    tl.store(tops + slots, t)
