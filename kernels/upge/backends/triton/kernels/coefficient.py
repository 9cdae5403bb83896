"""The losses and coefficients of objectives made of the four parts of UPGE, for the chunk's tokens in place.

The same algebra as `upge.surrogate` and `upge.regularizers`, which handle what this kernel does not. With pi_ref the
reference policy, A the advantage (1 where the objective has advantage "one"), w the weight and W = w times the
truncated importance ratio:

    r = pi / pi_ref, with log r cut to [-max_log_ratio, max_log_ratio] for a ratio to pi_old
    gain = what the stabilization mask makes of r;  factor = r d gain / d r  (the clipped r for a weight clip)

    likelihood "ratio":  loss = -W gain A,      g = -W factor A  (0 where log r was cut)
    likelihood "log":    loss = -W factor A l,  g = -W factor A
    entropy bonus:       loss -= w entropy_coef H
    KL penalty (k3):     d = ref_logprobs - l, at most max_log_ratio
                         loss += w kl_coef (e^d - 1 - d),  g -= w kl_coef (e^d - 1)  (0 where d was cut)

An objective is a line of a table (`objective_table.py`): the codes of its reference policy, advantage, likelihood and
stabilization mask, and up to three parameters of the mask.
"""

import triton
import triton.language as tl

FIELDS = tl.constexpr(7)
POLICY, ROLLOUT, ONE = (tl.constexpr(float(i)) for i in range(3))
UNMASKED, CLIP, WEIGHT_CLIP, WEIGHT_DROP, SHAPING, SOFT_GATE = (tl.constexpr(float(i)) for i in range(6))


@triton.jit(do_not_specialize=["n"])
def coefficient_kernel(
    rows,  # (n,) int64: the chunk's positions in the call's vectors
    logprobs,  # (n,) fp32
    entropy,  # (n,) fp32
    table,  # (K, FIELDS) fp32
    weights,  # (N,) fp32: w
    importance,  # (N,) fp32, read where HAS_IMPORTANCE
    objective_index,  # (N,) integer, read where HAS_INDEX
    advantages,  # (N,) fp32, read where HAS_ADVANTAGES
    old_logprobs,  # (N,) fp32, read where HAS_OLD
    ref_logprobs,  # (N,) fp32, read where HAS_KL
    entropy_coef,  # (N,) fp32, read where HAS_ENTROPY
    kl_coef,  # (N,) fp32, read where HAS_KL
    loss,  # out (n,) fp32
    coefficient,  # out (n,) fp32: g
    entropy_slope,  # out (n,) fp32: d loss / d H, written where HAS_ENTROPY
    ratio,  # out (n,) fp32: r
    stable,  # out (n,) int8
    n,
    max_log_ratio,
    HAS_IMPORTANCE: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    HAS_ADVANTAGES: tl.constexpr,
    HAS_OLD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_KL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (ceil(n / BLOCK),)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    row = tl.load(rows + i, mask=live, other=0)
    l = tl.load(logprobs + i, mask=live, other=0.0)
    w = tl.load(weights + row, mask=live, other=0.0)
    policy_weight = w
    if HAS_IMPORTANCE:
        policy_weight = w * tl.load(importance + row, mask=live, other=0.0)
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
    uncut = log_ratio == log_ratio
    if HAS_OLD:
        difference = l - tl.load(old_logprobs + row, mask=live, other=0.0)
        uncut = (pi_ref != ROLLOUT) | (tl.abs(difference) <= max_log_ratio)
        difference = tl.minimum(tl.maximum(difference, -max_log_ratio), max_log_ratio)
        log_ratio = tl.where(pi_ref == ROLLOUT, difference, log_ratio)
    r = tl.exp(log_ratio)

    # Clip: [first, second] is where r is left alone, third the dual clip. Weight clip: [first, second] alike.
    clip, weight_clip, weight_drop = stabilizer == CLIP, stabilizer == WEIGHT_CLIP, stabilizer == WEIGHT_DROP
    too_high, too_low = r > second, r < first
    one_sided = clip | weight_drop  # PPO's and the hard mask act only where r moved away with the advantage
    too_high = (weight_clip & too_high) | (one_sided & (a > 0.0) & too_high)
    too_low = (weight_clip & too_low) | (one_sided & (a < 0.0) & too_low)
    above_dual = clip & (a < 0.0) & (r > third)
    unchanged = (too_high | too_low | above_dual) == 0
    gain = tl.where(too_high, second, tl.where(too_low, first, r))
    gain = tl.where(above_dual, third, gain)
    factor = tl.where(unchanged, r, tl.where(weight_clip, gain, 0.0))
    shaped = r + tl.where(stabilizer == SHAPING, first, 1.0)
    gain = tl.where(stabilizer == SHAPING, r / shaped, gain)
    factor = tl.where(stabilizer == SHAPING, first * r / (shaped * shaped), factor)
    tau = tl.where(stabilizer == SOFT_GATE, tl.where(a > 0.0, first, second), 1.0)
    sigmoid = tl.sigmoid(tau * (r - 1.0))
    gain = tl.where(stabilizer == SOFT_GATE, 4.0 / tau * sigmoid, gain)
    factor = tl.where(stabilizer == SOFT_GATE, 4.0 * sigmoid * tl.sigmoid(-tau * (r - 1.0)) * r, factor)

    value = policy_weight * tl.where(through_ratio, -gain * a, -factor * a * l)
    g = policy_weight * tl.where(through_ratio & (uncut == 0), 0.0, -factor * a)
    if HAS_ENTROPY:
        bonus = tl.load(entropy_coef + row, mask=live, other=0.0)
        value -= w * bonus * tl.load(entropy + i, mask=live, other=0.0)
        tl.store(entropy_slope + i, -(w * bonus), mask=live)
    if HAS_KL:
        penalty = tl.load(kl_coef + row, mask=live, other=0.0)
        gap = tl.where(penalty != 0.0, tl.load(ref_logprobs + row, mask=live, other=0.0) - l, 0.0)
        below = tl.minimum(gap, max_log_ratio)
        near = tl.abs(below) < 0.25
        small = tl.where(near, below, 0.0)
        # e^x - 1 - x as x^2 (1/2 + x/6 + ...): a subtraction would cancel all digits of a small gap.
        tail = small * small * (1 / 2 + small * (1 / 6 + small * (1 / 24 + small * (1 / 120 + small * (1 / 720)))))
        expm1 = tl.exp(below) - 1.0
        value += w * penalty * tl.where(near, tail, expm1 - below)
        g -= w * penalty * tl.where(gap > max_log_ratio, 0.0, tl.where(near, tail + small, expm1))
    tl.store(loss + i, value, mask=live)
    tl.store(coefficient + i, g, mask=live)
    tl.store(ratio + i, r, mask=live)
    tl.store(stable + i, (unchanged & uncut).to(tl.int8), mask=live)
