"""From a tile of h W^T in registers to what is kept of it, shared by the kernels that compute logits.

With an anchor a near the target's logit z_y, all that a row needs are sums over the other entries j != y:

    S = sum_j exp(z_j - a),   S' = S exp(a - z_y),   l = -log(1 + S'),   1 - p_y = S' / (1 + S')

and for the entropy m = sum_j exp(z_j - a) (z_j - a) (see `rows.py`). So one pass over the logits is enough, without a
running maximum. The logits never leave the registers. E = exp(z - a) is stored for the gradient GEMMs (in bf16 for bf16
operands, since bf16 has the exponents of fp32), and S and m are summed in fp32 before that rounding.

The target's logit comes from this GEMM as well. All logits of a row are then rounded alike, and equal ones are equal.
Rows whose anchor turns out to be bad (`reanchor.py`) are computed again with another one (`redo.py`).

With a soft-cap, what is stored is E times the slope of the cap (`raw_logit.py`), since the gradient of h W^T + b is a
multiple of that. An entropy coefficient then also needs the distance d = z - a, which cannot be told from the product
(KEEP_DISTANCES). It is stored as (exp(|d|) - 1) sign(d), which bf16 holds with an error of 2^-8 min(1, |d|) in d.

exp(z - a) is 2^((u - a) log2(e) / T) with the raw logit u and the anchor as a raw logit. Partial sums go to one slot
per (vocabulary tile, row) and are added in a fixed order later, without atomics.
"""

import triton
import triton.language as tl

from .raw_logit import LOG2E, raw_logit

LOWEST = tl.constexpr(-1e30)  # 2^LOWEST is 0, and LOWEST times 0 too


@triton.jit
def _store(
    out,  # a pointer, or where DESCRIPTORS a descriptor of blocks (BM, n)
    values,  # (BM, n) fp32
    first_row,
    first,
    stride,
    live,  # (BM, 1): rows to write, read where MASKED
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
    BM: tl.constexpr,
    n: tl.constexpr,
):
    if DESCRIPTORS:
        out.store([first_row, first], values.to(out.dtype))
    else:
        corner = out + first_row.to(tl.int64) * stride + first
        places = tl.arange(0, BM)[:, None] * stride + tl.arange(0, n)[None, :]
        if MASKED:
            tl.store(corner + places, values.to(out.dtype.element_ty), mask=live)
        else:
            tl.store(corner + places, values.to(out.dtype.element_ty))


@triton.jit
def _part(
    product,  # (BM, n) fp32: columns of a tile of h W^T
    first_row,
    first,  # its first vocabulary entry
    scale,  # (BM,): log2(e) / T
    a,  # (BM,): the anchor, a raw logit
    y,  # (BM,): the target
    has_target,  # whether the tile has the target of any of its rows
    live,  # (BM,): rows to write, read where MASKED
    bias,
    exps,
    distances,
    target_logit,  # this and the next at the tile's first row
    target_slope,
    V,
    exps_stride,
    softcap,
    inverse_softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_DISTANCES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    n: tl.constexpr,
):
    """Store E and the target's u; return the row sums of E and of E (z - a) / log(2), and the largest u.

    Sums and maximum leave the target out. Few tiles have a target or entries past V, so only those spend time on it.
    """
    if PARTS > 1:
        left, right = tl.split(tl.permute(tl.reshape(product, (BM, 2, n // 2)), (0, 2, 1)))
        s0, m0, t0 = _part(
            left, first_row, first, scale, a, y, has_target, live, bias, exps, distances, target_logit, target_slope,
            V, exps_stride, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES,
            DESCRIPTORS, MASKED, PARTS // 2, BM, n // 2,
        )  # fmt: skip
        s1, m1, t1 = _part(
            right, first_row, first + n // 2, scale, a, y, has_target, live, bias, exps, distances, target_logit,
            target_slope, V, exps_stride, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES,
            DESCRIPTORS, MASKED, PARTS // 2, BM, n // 2,
        )  # fmt: skip
        return s0 + s1, m0 + m1, tl.maximum(t0, t1)
    else:
        columns = first + tl.arange(0, n)
        b = 0.0
        if HAS_BIAS:
            b = tl.load(bias + tl.minimum(columns, V - 1)).to(tl.float32)[None, :]
        u, slope = raw_logit(product, b, softcap, inverse_softcap, HAS_BIAS, HAS_SOFTCAP)
        own = columns[None, :] == y[:, None]
        here = (y >= first) & (y < first + n)
        if MASKED:
            here = here & live
        exponent = (u - a[:, None]) * scale[:, None]
        if HAS_BIAS:  # a bias of -inf switches an entry off: its moment is 0, and not 0 * -inf
            exponent = tl.maximum(exponent, LOWEST)
        # One branch, with a store in it: the compiler would turn a branch without one into a select of every entry.
        if has_target | (first + n > V):
            tl.store(target_logit + tl.arange(0, BM), tl.sum(tl.where(own, u, 0.0), 1), mask=here)
            left_out = own | (columns >= V)[None, :]
            u = tl.where(left_out, float("-inf"), u)
            exponent = tl.where(left_out, LOWEST, exponent)
        e = tl.exp2(exponent)
        if HAS_SOFTCAP and KEEP:  # noqa: SIM102  # a constant, decided when compiling, and a value
            if has_target:
                tl.store(target_slope + tl.arange(0, BM), tl.sum(tl.where(own, slope, 0.0), 1), mask=here)
        if KEEP:
            _store(exps, e * slope, first_row, first, exps_stride, live[:, None], DESCRIPTORS, MASKED, BM, n)
            if KEEP_DISTANCES:
                growth = tl.exp2(tl.minimum(tl.abs(exponent), 120.0)) - 1.0
                signed = tl.where(exponent < 0.0, -growth, growth)
                _store(distances, signed, first_row, first, exps_stride, live[:, None], DESCRIPTORS, MASKED, BM, n)
        return tl.sum(e, 1), tl.sum(e * exponent, 1), tl.max(u, 1)


@triton.jit
def epilogue(
    product,  # (BM, BN) fp32: a tile of h W^T
    first_row,
    first,  # its first vocabulary entry
    live,  # (BM,): rows to write, read where MASKED
    bias,
    targets,
    inverse_temperature,
    anchor,
    target_logit,
    target_slope,
    exps,
    distances,
    V,
    exps_stride,
    softcap,
    inverse_softcap,
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_DISTANCES: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """Store E and the target's logit; return the tile's sums, moments and largest logits, (BM,) each.

    The arguments are those of `logits.py`.
    """
    rows = first_row + tl.arange(0, BM)
    scale = tl.load(inverse_temperature + rows) * LOG2E
    a = tl.load(anchor + rows)
    y = tl.load(targets + rows)
    has_target = tl.max(((y >= first) & (y < first + BN)).to(tl.int32), 0) != 0
    return _part(
        product, first_row, first, scale, a, y, has_target, live, bias, exps, distances,
        target_logit + first_row, target_slope + first_row, V, exps_stride, softcap, inverse_softcap,
        HAS_BIAS, HAS_SOFTCAP, KEEP, KEEP_DISTANCES, DESCRIPTORS, MASKED, PARTS, BM, BN,
    )  # fmt: skip
