"""From the partial sums of the tiles to a row's log-probability and entropy.

With d = z_y - a, S the sum of exp(z_j - a) over j != y, and m the sum of exp(z_j - a) (z_j - a) over the same,

    total = exp(d) + S,   l = d - log(total),   H = log(total) - (m + exp(d) d) / total.

Where the target is near its anchor, the same relative to the target keeps the digits that d would cancel:

    log(total) = d + log1p(S exp(-d)),   l = -log1p(S exp(-d)),   H = -l - (m - d S) / total,   1 - p_y = S / total.

Elsewhere the anchor is the largest logit, far above the target's, and nothing cancels.

log1p(s) is 2 artanh(s / (2 + s)) for s < 1. The hardware's logarithm has an absolute error of 2^-22 near 1, which could
be as large as l itself for a confident token.
"""

import triton
import triton.language as tl

from .raw_logit import LOG2E
from .reanchor import NEAR


@triton.jit
def log1p(s):
    """log(1 + s) for s >= 0, to a few units in the last place."""
    t = s / (2.0 + s)
    u = t * t  # at most 1/9, so the first term left out is u^8 / 17 < 2e-9
    series = 1.0 + u * (1 / 3 + u * (1 / 5 + u * (1 / 7 + u * (1 / 9 + u * (1 / 11 + u * (1 / 13 + u * (1 / 15)))))))
    return tl.where(s < 1.0, 2.0 * t * series, tl.log(1.0 + s))


@triton.jit(do_not_specialize=["M", "tiles"])
def rows_kernel(
    sums,  # (tiles, M) fp32
    moments,  # (tiles, M) fp32, in units of log(2)
    target_logit,  # (M,) fp32: the target's raw logit
    anchor,  # (M,) fp32: a T
    inverse_temperature,  # (M,) fp32
    logprobs,  # out (M,) fp32: l
    entropy,  # out (M,) fp32: H
    lse,  # out (M,) fp32: a + log(total)
    scaled_anchor,  # out (M,) fp32: a
    log_total,  # out (M,) fp32
    share,  # out (M,) fp32: exp(d)
    others,  # out (M,) fp32: S, so that 1 - p_y = S / total without cancellation
    M,
    tiles,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (M / ROWS,). The order of a row's summation depends only on V."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    partial_sums = tl.zeros([BLOCK, ROWS], tl.float32)
    partial_moments = tl.zeros([BLOCK, ROWS], tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = (start + tl.arange(0, BLOCK))[:, None]
        slots = tile * M + rows[None, :]
        partial_sums += tl.load(sums + slots, mask=tile < tiles, other=0.0)
        partial_moments += tl.load(moments + slots, mask=tile < tiles, other=0.0)
    s = tl.sum(partial_sums, 0)
    moment = tl.sum(partial_moments, 0) / LOG2E
    a = tl.load(anchor + rows)
    inverse = tl.load(inverse_temperature + rows)
    distance = (tl.load(target_logit + rows) - a) * inverse
    near = tl.abs(distance) <= NEAR
    own = tl.exp(distance)
    whole = own + s
    d = tl.where(near, distance, 0.0)
    nll = log1p(s * tl.exp(-d))
    log_whole = tl.where(near, d + nll, tl.log(whole))
    far_entropy = log_whole - (moment + own * tl.maximum(distance, -1e30)) / whole
    tl.store(logprobs + rows, tl.where(near, 0.0 - nll, distance - log_whole))
    tl.store(entropy + rows, tl.where(near, nll - (moment - d * s) / whole, far_entropy))
    tl.store(lse + rows, a * inverse + log_whole)
    tl.store(scaled_anchor + rows, a * inverse)
    tl.store(log_total + rows, log_whole)
    tl.store(share + rows, own)
    tl.store(others + rows, s)
