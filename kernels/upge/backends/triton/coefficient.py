"""The per-token step of the presets: ratio, mask, shaping, advantage and weight, on the chunk's rows in place.

The same algebra as `upge.coefficient.TokenStep`, which serves sequence-level objectives and user functions. An
objective is a row of a table: the codes of its reference, advantage, likelihood and mask, and up to three parameters.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from ...coefficient import MAX_LOG_RATIO
from ...objective import Clip, Objective, Shaping, SoftGate, WeightClip

FIELDS = tl.constexpr(7)
POLICY, ROLLOUT, ONE = (tl.constexpr(float(i)) for i in range(3))
UNMASKED, CLIP, WEIGHT_CLIP, WEIGHT_DROP, SHAPING, SOFT_GATE = (tl.constexpr(float(i)) for i in range(6))
SATURATION = tl.constexpr(MAX_LOG_RATIO)


def can_fuse(objectives: tuple[Objective, ...]) -> bool:
    return all(o.function is None and not o.needs_all_tokens for o in objectives)


@lru_cache(maxsize=64)
def objective_table(objectives: tuple[Objective, ...], device: torch.device) -> torch.Tensor:
    """(K, FIELDS) fp32; cached, since copying it to the device waits."""
    table = []
    for o in objectives:
        reference = {"policy": POLICY, "rollout": ROLLOUT, "one": ONE}[o.reference]
        mask, parameters = UNMASKED, [0.0, 0.0, 0.0]
        if isinstance(o.mask, Clip):
            dual = float("inf") if o.mask.dual is None else o.mask.dual
            mask, parameters = CLIP, [o.mask.low, o.mask.high, dual]
        elif isinstance(o.mask, WeightClip):
            mask, parameters = (WEIGHT_DROP if o.mask.drop else WEIGHT_CLIP), [o.mask.high, 0.0, 0.0]
        elif isinstance(o.mask, Shaping):
            mask, parameters = SHAPING, [o.mask.gamma, 0.0, 0.0]
        elif isinstance(o.mask, SoftGate):
            mask, parameters = SOFT_GATE, [o.mask.tau_positive, o.mask.tau_negative, 0.0]
        table.append([reference.value, o.advantage == "one", o.likelihood == "ratio", mask.value, *parameters])
    return torch.tensor(table, dtype=torch.float32, device=device)


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
    reference = tl.load(objective)
    advantage_is_one = tl.load(objective + 1) != 0.0
    through_ratio = tl.load(objective + 2) != 0.0
    mask = tl.load(objective + 3)
    first = tl.load(objective + 4)
    second = tl.load(objective + 5)
    third = tl.load(objective + 6)

    a = tl.full([BLOCK], 1.0, tl.float32)
    if HAS_ADVANTAGES:
        a = tl.where(advantage_is_one, a, tl.load(advantages + row, mask=live, other=0.0))
    log_ratio = tl.where(reference == ONE, l, 0.0)
    if HAS_OLD:
        old = tl.load(old_logprobs + row, mask=live, other=0.0)
        log_ratio = tl.where(reference == ROLLOUT, l - old, log_ratio)
    r = tl.exp(tl.minimum(log_ratio, SATURATION))

    # gain: what the mask makes of r; slope: d gain / d r.
    gain = r
    slope = tl.full([BLOCK], 1.0, tl.float32)
    over = (mask == CLIP) & (a > 0.0) & (r > 1.0 + second)
    under = (mask == CLIP) & (a < 0.0) & (r < 1.0 - first)
    beyond = (mask == CLIP) & (a < 0.0) & (r > third)
    heavy = ((mask == WEIGHT_CLIP) | ((mask == WEIGHT_DROP) & (a > 0.0))) & (r > 1.0 + first)
    gain = tl.where(over, 1.0 + second, gain)
    gain = tl.where(under, 1.0 - first, gain)
    gain = tl.where(beyond, third, gain)
    gain = tl.where(heavy, tl.where(mask == WEIGHT_DROP, 0.0, 1.0 + first), gain)
    untouched = (over | under | beyond | heavy) == 0
    slope = tl.where(untouched, slope, 0.0)
    shaped = r + tl.where(mask == SHAPING, first, 1.0)
    gain = tl.where(mask == SHAPING, r / shaped, gain)
    slope = tl.where(mask == SHAPING, first / (shaped * shaped), slope)
    tau = tl.where(mask == SOFT_GATE, tl.where(a > 0.0, first, second), 1.0)
    gate = tl.sigmoid(tau * (r - 1.0))
    gain = tl.where(mask == SOFT_GATE, 4.0 / tau * gate, gain)
    slope = tl.where(mask == SOFT_GATE, 4.0 * gate * tl.sigmoid(-tau * (r - 1.0)), slope)

    value = tl.where(through_ratio, -gain * a, -gain * a * l)
    g = tl.where(through_ratio, -slope * a * r, -gain * a)
    value -= entropy_coef * tl.load(entropy + i, mask=live, other=0.0)
    if HAS_KL:
        gap = tl.load(ref_logprobs + row, mask=live, other=0.0) - l
        small = tl.where(tl.abs(gap) < 0.25, gap, 0.0)
        # e^x - 1 - x as x^2 (1/2 + x/6 + ...): subtracting would leave nothing of a small gap.
        tail = small * small * (1 / 2 + small * (1 / 6 + small * (1 / 24 + small * (1 / 120 + small * (1 / 720)))))
        risen = tl.exp(tl.minimum(gap, SATURATION)) - 1.0
        near = tl.abs(gap) < 0.25
        value += kl_coef * tl.where(near, tail, risen - gap)
        g -= kl_coef * tl.where(near, tail + small, risen)
    tl.store(loss + i, w * value, mask=live)
    tl.store(coefficient + i, w * g, mask=live)
    tl.store(ratio + i, r, mask=live)
    tl.store(stable + i, untouched.to(tl.int8), mask=live)
