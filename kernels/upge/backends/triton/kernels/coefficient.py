"""The losses and coefficients of objectives made of the four parts of UPGE, for the chunk's tokens in place.

The same algebra as `upge.token_loss`, which handles sequence-level objectives and user-defined functions. With pi_ref
the reference policy, A the advantage (1 where the objective has advantage "one") and w the weight:

    r = pi / pi_ref, at most e^80;  gain = what the stabilization mask makes of r;  slope = d gain / d r

    likelihood "ratio":  loss = -w gain A,    g = -w slope A r
    likelihood "log":    loss = -w gain A l,  g = -w gain A
    entropy bonus:       loss -= w entropy_coef H
    KL penalty (k3):     d = ref_logprobs - l;  loss += w kl_coef (e^d - 1 - d),  g -= w kl_coef (e^d - 1)

An objective is a line of a table (`objective_table.py`): the codes of its reference policy, advantage, likelihood and
stabilization mask, and up to three parameters of the mask.
"""

import triton
import triton.language as tl

from ....token_loss import MAX_LOG_RATIO

FIELDS = tl.constexpr(7)
POLICY, ROLLOUT, ONE = (tl.constexpr(float(i)) for i in range(3))
UNMASKED, CLIP, WEIGHT_CLIP, WEIGHT_DROP, SHAPING, SOFT_GATE = (tl.constexpr(float(i)) for i in range(6))
SATURATION = tl.constexpr(MAX_LOG_RATIO)


@triton.jit
def coefficient_kernel(
    rows,  # (M,) int64: the chunk's positions in the call's vectors
    logprobs,  # (M,) fp32
    entropy,  # (M,) fp32
    table,  # (K, FIELDS) fp32
    weights,  # (N,) fp32
    objective_index,  # (N,) integer, read where HAS_INDEX
    advantages,  # (N,) fp32, read where HAS_ADVANTAGES
    old_logprobs,  # (N,) fp32, read where HAS_OLD
    ref_logprobs,  # (N,) fp32, read where HAS_KL
    loss,  # out (M,) fp32
    coefficient,  # out (M,) fp32: g
    ratio,  # out (M,) fp32: r
    stable,  # out (M,) int8
    M,
    entropy_coef,
    kl_coef,
    HAS_INDEX: tl.constexpr,
    HAS_ADVANTAGES: tl.constexpr,
    HAS_OLD: tl.constexpr,
    HAS_KL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(M / BLOCK),)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < M
    row = tl.load(rows + i, mask=live, other=0)
    l = tl.load(logprobs + i, mask=live, other=0.0)
    w = tl.load(weights + row, mask=live, other=0.0)
    objective = table
    if HAS_INDEX:
        objective += tl.load(objective_index + row, mask=live, other=0).to(tl.int32) * FIELDS
    else:
        objective += i * 0
    pi_ref = tl.load(objective)
    advantage_is_one = tl.load(objective + 1) != 0.0
    through_ratio = tl.load(objective + 2) != 0.0
    stabilizer = tl.load(objective + 3)
    first = tl.load(objective + 4)
    second = tl.load(objective + 5)
    third = tl.load(objective + 6)

    a = tl.full([BLOCK], 1.0, tl.float32)
    if HAS_ADVANTAGES:
        a = tl.where(advantage_is_one, a, tl.load(advantages + row, mask=live, other=0.0))
    log_ratio = tl.where(pi_ref == ONE, l, 0.0)
    if HAS_OLD:
        old = tl.load(old_logprobs + row, mask=live, other=0.0)
        log_ratio = tl.where(pi_ref == ROLLOUT, l - old, log_ratio)
    r = tl.exp(tl.minimum(log_ratio, SATURATION))

    gain = r
    slope = tl.full([BLOCK], 1.0, tl.float32)
    too_high = (stabilizer == CLIP) & (a > 0.0) & (r > 1.0 + second)
    too_low = (stabilizer == CLIP) & (a < 0.0) & (r < 1.0 - first)
    above_dual = (stabilizer == CLIP) & (a < 0.0) & (r > third)
    too_heavy = ((stabilizer == WEIGHT_CLIP) | ((stabilizer == WEIGHT_DROP) & (a > 0.0))) & (r > 1.0 + first)
    gain = tl.where(too_high, 1.0 + second, gain)
    gain = tl.where(too_low, 1.0 - first, gain)
    gain = tl.where(above_dual, third, gain)
    gain = tl.where(too_heavy, tl.where(stabilizer == WEIGHT_DROP, 0.0, 1.0 + first), gain)
    unchanged = (too_high | too_low | above_dual | too_heavy) == 0
    slope = tl.where(unchanged, slope, 0.0)
    shaped = r + tl.where(stabilizer == SHAPING, first, 1.0)
    gain = tl.where(stabilizer == SHAPING, r / shaped, gain)
    slope = tl.where(stabilizer == SHAPING, first / (shaped * shaped), slope)
    tau = tl.where(stabilizer == SOFT_GATE, tl.where(a > 0.0, first, second), 1.0)
    sigmoid = tl.sigmoid(tau * (r - 1.0))
    gain = tl.where(stabilizer == SOFT_GATE, 4.0 / tau * sigmoid, gain)
    slope = tl.where(stabilizer == SOFT_GATE, 4.0 * sigmoid * tl.sigmoid(-tau * (r - 1.0)), slope)

    value = tl.where(through_ratio, -gain * a, -gain * a * l)
    g = tl.where(through_ratio, -slope * a * r, -gain * a)
    value -= entropy_coef * tl.load(entropy + i, mask=live, other=0.0)
    if HAS_KL:
        gap = tl.load(ref_logprobs + row, mask=live, other=0.0) - l
        small = tl.where(tl.abs(gap) < 0.25, gap, 0.0)
        # e^x - 1 - x as x^2 (1/2 + x/6 + ...): a subtraction would cancel all digits of a small gap.
        tail = small * small * (1 / 2 + small * (1 / 6 + small * (1 / 24 + small * (1 / 120 + small * (1 / 720)))))
        expm1 = tl.exp(tl.minimum(gap, SATURATION)) - 1.0
        near = tl.abs(gap) < 0.25
        value += kl_coef * tl.where(near, tail, expm1 - gap)
        g -= kl_coef * tl.where(near, tail + small, expm1)
    tl.store(loss + i, w * value, mask=live)
    tl.store(coefficient + i, w * g, mask=live)
    tl.store(ratio + i, r, mask=live)
    tl.store(stable + i, unchanged.to(tl.int8), mask=live)
