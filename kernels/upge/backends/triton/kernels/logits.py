"""The forward GEMM: exp(z - a) of a tile of tokens by vocabulary entries, and its contribution to the row sums.

With a = z_y, every quantity of a row is a sum over the other entries j != y:

    S = sum_j exp(z_j - a),   l = -log(1 + S),   H = log(1 + S) - sum_j exp(z_j - a) (z_j - a) / (1 + S)

So one pass over the logits is enough, without a running maximum. The logits never leave the registers. E = exp(z - a)
is stored for the gradient GEMMs (in bf16 for bf16 operands, since bf16 has the exponents of fp32), and S and the
entropy's moment are summed in fp32 before that rounding. Rows with a very unlikely target would overflow. The tile's
largest z - a shows which, and they are computed again (REDO) with their maximum as the anchor.

Partial sums go to one slot per (row, vocabulary tile) and are added in a fixed order later, without atomics.
"""

import triton
import triton.language as tl

from .dot import add_dot
from .scaled_logit import scaled_logit


@triton.jit
def _epilogue(
    product,  # (BM, n) fp32: columns of a tile of h W^T
    first,  # its first vocabulary entry
    rows,  # (BM,): its rows, counted from the tile's first
    inverse,  # (BM,): 1 / T
    a,  # (BM,): the anchor
    y,  # (BM,): the target
    bias,
    exps,  # at the tile's first row
    V,
    exps_stride,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    n: tl.constexpr,
):
    """Store E = exp(z - a); return its row sums, the sums of E (z - a) and the largest z - a."""
    columns = first + tl.arange(0, n)
    b = 0.0
    if HAS_BIAS:
        b = tl.load(bias + tl.minimum(columns, V - 1)).to(tl.float32)[None, :]
    distance = scaled_logit(product, b, inverse[:, None], softcap, HAS_BIAS, HAS_SOFTCAP) - a[:, None]
    others = (columns < V)[None, :] & (columns[None, :] != y[:, None])
    distance = tl.where(others, distance, float("-inf"))
    e = tl.exp(distance)
    if KEEP:
        pointers = exps + first + rows[:, None] * exps_stride + (columns - first)[None, :]
        tl.store(pointers, e.to(exps.dtype.element_ty))
    # Where E is 0 its moment is 0, and not 0 * -inf.
    return tl.sum(e, 1), tl.sum(e * tl.maximum(distance, -1e30), 1), tl.max(distance, 1)


@triton.jit
def logits_kernel(
    hidden,  # (M, D)
    weight,  # (V, D), rows weight_stride apart
    bias,  # (V,)
    targets,  # (M,) int64
    inverse_temperature,  # (M,) fp32
    anchor,  # (M,) fp32
    redo,  # (M,) int8: rows to compute again; read where REDO
    exps,  # out (M, exps_stride): exp(z - anchor), 0 at the target and past V; written where KEEP
    sums,  # out (M, tiles) fp32: sum of exp(z - anchor) over the tile
    moments,  # out (M, tiles) fp32: sum of exp(z - anchor) (z - anchor)
    tops,  # out (M, tiles) fp32: max of z - anchor
    M,
    V,
    D,
    weight_stride,
    exps_stride,  # a multiple of BN
    tiles,  # ceil(V / BN)
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    REDO: tl.constexpr,
    EVEN_D: tl.constexpr,  # D is a multiple of BK
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    SPLIT: tl.constexpr,  # run the epilogue in four parts: all of a wide tile's z and E do not fit the registers
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
        product = add_dot(product, h, w, PRECISION)
        h_pointers += BK
        w_pointers += BK

    inverse = tl.load(inverse_temperature + first_row + rows)
    a = tl.load(anchor + first_row + rows)
    y = tl.load(targets + first_row + rows).to(tl.int32)
    exps += first_row.to(tl.int64) * exps_stride
    if SPLIT:
        left, right = tl.split(tl.permute(tl.reshape(product, (BM, 2, BN // 2)), (0, 2, 1)))
        part0, part1 = tl.split(tl.permute(tl.reshape(left, (BM, 2, BN // 4)), (0, 2, 1)))
        part2, part3 = tl.split(tl.permute(tl.reshape(right, (BM, 2, BN // 4)), (0, 2, 1)))
        s0, m0, t0 = _epilogue(
            part0, first, rows, inverse, a, y, bias, exps, V, exps_stride, softcap, HAS_BIAS, HAS_SOFTCAP, KEEP, BN // 4
        )  # fmt: skip
        s1, m1, t1 = _epilogue(
            part1, first + 1 * BN // 4, rows, inverse, a, y, bias, exps, V, exps_stride, softcap,
            HAS_BIAS, HAS_SOFTCAP, KEEP, BN // 4,
        )  # fmt: skip
        s2, m2, t2 = _epilogue(
            part2, first + 2 * BN // 4, rows, inverse, a, y, bias, exps, V, exps_stride, softcap,
            HAS_BIAS, HAS_SOFTCAP, KEEP, BN // 4,
        )  # fmt: skip
        s3, m3, t3 = _epilogue(
            part3, first + 3 * BN // 4, rows, inverse, a, y, bias, exps, V, exps_stride, softcap,
            HAS_BIAS, HAS_SOFTCAP, KEEP, BN // 4,
        )  # fmt: skip
        s, m = (s0 + s1) + (s2 + s3), (m0 + m1) + (m2 + m3)
        t = tl.maximum(tl.maximum(t0, t1), tl.maximum(t2, t3))
    else:
        s, m, t = _epilogue(
            product, first, rows, inverse, a, y, bias, exps, V, exps_stride, softcap, HAS_BIAS, HAS_SOFTCAP, KEEP, BN
        )  # fmt: skip
    slots = (first_row + rows) * tiles + tile
    tl.store(sums + slots, s)
    tl.store(moments + slots, m)
    tl.store(tops + slots, t)
