"""From the partial sums of the tiles to a row's log-probability and entropy.

With d_y = z_y - a (0 unless the row was re-anchored), share = exp(d_y) and total = share + S:

    l = d_y - log(total),   H = log(total) - (sum_j exp(z_j - a)(z_j - a) + share d_y) / total.

At d_y = 0, log(total) = log1p(S), computed as 2 artanh(S / (2 + S)) for S < 1. The hardware's logarithm has an absolute
error of 2^-22 near 1, which could be as large as l itself for a confident token.
"""

import triton
import triton.language as tl


@triton.jit
def log1p(s):
    """log(1 + s) for s >= 0, to a few units in the last place."""
    t = s / (2.0 + s)
    u = t * t  # at most 1/9, so the first term left out is u^8 / 17 < 2e-9
    series = 1.0 + u * (1 / 3 + u * (1 / 5 + u * (1 / 7 + u * (1 / 9 + u * (1 / 11 + u * (1 / 13 + u * (1 / 15)))))))
    return tl.where(s < 1.0, 2.0 * t * series, tl.log(1.0 + s))


@triton.jit
def rows_kernel(
    sums,  # (M, tiles) fp32
    moments,  # (M, tiles) fp32
    target_logit,  # (M,) fp32: z_y
    anchor,  # (M,) fp32
    logprobs,  # out (M,) fp32: l
    entropy,  # out (M,) fp32: H
    log_total,  # out (M,) fp32
    total,  # out (M,) fp32: share + S
    others,  # out (M,) fp32: S, so that 1 - p_y = others / total without cancellation
    M,
    tiles,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(M / ROWS),). The order of a row's summation depends only on V."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    live = rows < M
    partial_sums = tl.zeros([ROWS, BLOCK], tl.float32)
    partial_moments = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        slots = rows[:, None] * tiles + tile[None, :]
        inside = live[:, None] & (tile < tiles)[None, :]
        partial_sums += tl.load(sums + slots, mask=inside, other=0.0)
        partial_moments += tl.load(moments + slots, mask=inside, other=0.0)
    s = tl.sum(partial_sums, 1)
    moment = tl.sum(partial_moments, 1)
    z = tl.load(target_logit + rows, mask=live, other=0.0)
    distance = z - tl.load(anchor + rows, mask=live, other=0.0)
    share = tl.exp(distance)
    whole = share + s
    log_whole = tl.where(distance == 0.0, log1p(s), tl.log(whole))
    tl.store(logprobs + rows, distance - log_whole, mask=live)
    tl.store(entropy + rows, log_whole - (moment + share * distance) / whole, mask=live)
    tl.store(log_total + rows, log_whole, mask=live)
    tl.store(total + rows, whole, mask=live)
    tl.store(others + rows, s, mask=live)
