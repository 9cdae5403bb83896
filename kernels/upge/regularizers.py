"""What every counted token adds to its objective's loss: the entropy bonus, the KL penalty and the z-loss.

    loss += w (kl_coef KL - entropy_coef H + lse_coef lse^2)

With d = ref_logprobs - l, cut at max_log_ratio from above where it is exponentiated, the KL estimators are
(http://joschu.net/blog/kl-approx.html)

    k1 = -d     k2 = d^2 / 2     abs = |d|     k3 = e^d - d - 1     k3_ratio = k3 r

where r = pi / pi_old keeps its gradient: k3_ratio is unbiased also for tokens of an older policy (DeepSeek-V3.2 2025,
arXiv 2512.02556, Eq. 7; TRL's use_bias_correction_kl). r is that of the token, or of the sequence for an objective
with a ratio per sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .inputs import TokenInputs
from .objective import Objective
from .sequences import sequence_mean
from .surrogate import policy_ratio

KL_KINDS = ("k3", "k1", "k2", "abs", "k3_ratio")


def kl_penalty(
    kind: str, objective: Objective, tokens: TokenInputs, logprobs: Tensor, max_log_ratio: float
) -> tuple[Tensor, Tensor]:
    """The weighted KL penalty (n,) of tokens that follow `objective`, and its derivative with respect to logprobs."""
    assert tokens.ref_logprobs is not None
    assert tokens.kl_coef is not None
    scale = tokens.weights * tokens.kl_coef
    d = (tokens.ref_logprobs - logprobs).masked_fill(tokens.kl_coef == 0, 0.0)  # not read there: it may be NaN
    value, slope = _estimate(kind, d, max_log_ratio)
    if kind != "k3_ratio":
        return scale * value, scale * slope
    by_sequence = objective.reference == "sequence"
    r = policy_ratio("sequence" if by_sequence else "rollout", tokens, logprobs, max_log_ratio)
    ratio = torch.where(tokens.kl_coef == 0, 1.0, r.value)  # old_logprobs may be NaN there
    through_ratio = scale * value * ratio * r.uncut
    if by_sequence:
        assert tokens.sequence_ids is not None
        through_ratio = sequence_mean(through_ratio.double(), tokens.sequence_ids).float()
    return scale * value * ratio, scale * slope * ratio + through_ratio


def _estimate(kind: str, d: Tensor, max_log_ratio: float) -> tuple[Tensor, Tensor]:
    """The estimate and its derivative with respect to l = ref_logprobs - d."""
    if kind == "k1":
        return -d, torch.ones_like(d)
    if kind == "k2":
        return d.square() / 2, -d
    if kind == "abs":
        return d.abs(), -d.sign()
    uncut, d = d <= max_log_ratio, d.clamp(max=max_log_ratio)
    return (torch.expm1(d.double()) - d).float(), -torch.expm1(d) * uncut
