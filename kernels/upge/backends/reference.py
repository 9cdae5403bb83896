"""The reference: float64, every logit materialised, plain autograd through each objective as its paper writes it.

It shares no formula with the other backends (they know the coefficient of each objective; this one differentiates its
loss), which is what makes it worth comparing with. For tests: it needs about 40 bytes per token and vocabulary entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..coefficient import TokenStep, user_loss
from ..inputs import Head, Tokens
from ..objective import Clip, Objective, Shaping, SoftGate, WeightClip


def logprobs(head: Head) -> tuple[Tensor, Tensor]:
    """log pi(y) and entropy, (N,) float64, differentiable in the head's inputs."""
    z = head.hidden.double() @ head.weight.double().t()
    if head.bias is not None:
        z = z + head.bias.double()
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    temperature = head.temperature
    z = z / (temperature.double()[:, None] if isinstance(temperature, Tensor) else temperature)
    log_p = torch.log_softmax(z, dim=1)
    return log_p.gather(1, head.targets.long()[:, None]).squeeze(1), -(log_p.exp() * log_p.clamp(min=-1e30)).sum(1)


@dataclass(frozen=True)
class Outcome:
    """The differentiable loss (), and per token (n,), detached: g, ratio and mask."""

    loss: Tensor
    coefficient: Tensor
    ratio: Tensor
    stable: Tensor


def policy_loss(tokens: Tokens, step: TokenStep, logprobs: Tensor, entropy: Tensor) -> Outcome:
    """tokens: n rows; logprobs, entropy: (n,) float64 as `logprobs` gives them."""
    # inference_mode(False) turns gradients on as well; what was made in inference mode has to be copied for them.
    with torch.inference_mode(False):
        copies, leaf = tokens.map(torch.clone), logprobs.detach().clone().requires_grad_()
        per_token, ratio, stable = _per_token(copies, step, leaf)
        (coefficient,) = torch.autograd.grad(per_token.sum(), leaf)
    per_token = _per_token(tokens, step, logprobs)[0] if torch.is_grad_enabled() else per_token.detach()
    loss = per_token - step.entropy_coef * tokens.weights.double() * entropy
    return Outcome(loss.sum(), coefficient, ratio.detach(), stable)


def _per_token(tokens: Tokens, step: TokenStep, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    index = tokens.objective_index
    loss, ratio = logprobs * 0.0, torch.ones_like(logprobs)
    stable = torch.ones_like(logprobs, dtype=torch.bool)
    for number, objective in enumerate(step.objectives):
        follows = torch.ones_like(stable) if len(step.objectives) == 1 or index is None else index == number
        rows = follows.nonzero().squeeze(1)
        if not rows.numel():
            continue
        surrogate, r, m = _surrogate(objective, tokens.at(rows), logprobs[rows])
        loss = loss.index_add(0, rows, tokens.weights[rows].double() * surrogate)
        ratio, stable = ratio.index_copy(0, rows, r.detach()), stable.index_copy(0, rows, m)
    if step.kl_coef:
        assert tokens.ref_logprobs is not None
        gap = tokens.ref_logprobs.double() - logprobs
        loss = loss + tokens.weights.double() * step.kl_coef * (gap.exp() - gap - 1)
    return loss, ratio, stable


def _surrogate(objective: Objective, tokens: Tokens, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each token before its weight, its ratio and its mask."""
    always = torch.ones_like(logprobs, dtype=torch.bool)
    if objective.function is not None:
        return user_loss(objective, tokens, logprobs), torch.ones_like(logprobs), always
    one = objective.advantage == "one" or tokens.advantages is None
    a = torch.ones_like(logprobs) if one else tokens.advantages.double()  # type: ignore[union-attr]
    if objective.reference == "policy":
        r = (logprobs - logprobs.detach()).exp()
    elif objective.reference == "one":
        r = logprobs.exp()
    else:
        r = logprobs - tokens.old_logprobs.double()  # type: ignore[union-attr]
        if objective.reference == "sequence":
            same = tokens.sequence_ids[:, None] == tokens.sequence_ids[None, :]  # type: ignore[index]
            r = (same.double() @ r) / same.sum(1)
        r = r.exp()
    mask = objective.mask
    if isinstance(mask, Clip):
        gain = torch.min(r * a, r.clamp(1 - mask.low, 1 + mask.high) * a)
        stable = ~((a > 0) & (r > 1 + mask.high)) & ~((a < 0) & (r < 1 - mask.low))
        if mask.dual is not None:
            gain = torch.where(a < 0, torch.max(gain, mask.dual * a), gain)
            stable &= ~((a < 0) & (r > mask.dual))
        return -gain, r, stable
    if isinstance(mask, WeightClip):
        kept = r.detach() <= 1 + mask.high
        if mask.drop:
            kept = ~((a > 0) & ~kept)
        weight = torch.where(kept, r, 0.0) if mask.drop else r.clamp(max=1 + mask.high)
        return -weight.detach() * a * logprobs, r, kept
    if isinstance(mask, Shaping):
        return -a * r / (r + mask.gamma), r, always
    if isinstance(mask, SoftGate):
        tau = torch.full_like(a, mask.tau_negative).masked_fill(a > 0, mask.tau_positive)
        return -(4 / tau) * torch.sigmoid(tau * (r - 1)) * a, r, always
    return (-a * r if objective.likelihood == "ratio" else -r.detach() * a * logprobs), r, always
