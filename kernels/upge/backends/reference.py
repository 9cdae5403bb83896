"""The `reference` backend: float64, all logits stored, and plain autograd through each paper's formula.

It shares no formula with the other backends: they use the coefficient of each objective, this one differentiates its
loss. That makes it worth comparing with. For tests: it needs about 40 bytes per token and vocabulary entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import HeadInputs, TokenInputs
from ..objective import Clip, Objective, Shaping, SoftGate, WeightClip
from ..token_loss import Coefficients, LossFormula, TokenLosses, call_function


def logprobs(head: HeadInputs) -> tuple[Tensor, Tensor]:
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


def policy_loss(
    tokens: TokenInputs, formula: LossFormula, logprobs: Tensor, entropy: Tensor
) -> tuple[Tensor, TokenLosses]:
    """The differentiable loss () of n tokens, and their values, detached.

    logprobs and entropy: (n,) float64, from `logprobs`.
    """
    # inference_mode(False) also turns gradients on. Tensors made in inference mode cannot have any, so copy them.
    with torch.inference_mode(False):
        copies, leaf = tokens.map(torch.clone), logprobs.detach().clone().requires_grad_()
        per_token, ratio, stable = _per_token(copies, formula, leaf)
        (coefficient,) = torch.autograd.grad(per_token.sum(), leaf)
    per_token = _per_token(tokens, formula, logprobs)[0] if torch.is_grad_enabled() else per_token.detach()
    per_token = per_token - formula.entropy_coef * tokens.weights.double() * entropy
    return per_token.sum(), TokenLosses(per_token.detach(), Coefficients(coefficient), ratio.detach(), stable)


def _per_token(tokens: TokenInputs, formula: LossFormula, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss of each token without its entropy term, its ratio, and stable."""
    index = tokens.objective_index
    loss, ratio = logprobs * 0.0, torch.ones_like(logprobs)
    stable = torch.ones_like(logprobs, dtype=torch.bool)
    for number, objective in enumerate(formula.objectives):
        follows = torch.ones_like(stable) if len(formula.objectives) == 1 or index is None else index == number
        rows = follows.nonzero().squeeze(1)
        if not rows.numel():
            continue
        surrogate, r, unclipped = _surrogate(objective, tokens.at(rows), logprobs[rows])
        loss = loss.index_add(0, rows, tokens.weights[rows].double() * surrogate)
        ratio, stable = ratio.index_copy(0, rows, r.detach()), stable.index_copy(0, rows, unclipped)
    if formula.kl_coef:
        assert tokens.ref_logprobs is not None
        gap = tokens.ref_logprobs.double() - logprobs
        loss = loss + tokens.weights.double() * formula.kl_coef * (gap.exp() - gap - 1)
    return loss, ratio, stable


def _surrogate(objective: Objective, tokens: TokenInputs, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each token before its weight, its ratio, and stable."""
    always = torch.ones_like(logprobs, dtype=torch.bool)
    if objective.function is not None:
        return call_function(objective, tokens, logprobs), torch.ones_like(logprobs), always
    r = _ratio(objective, tokens, logprobs)
    a = torch.ones_like(logprobs)
    if objective.advantage == "given":
        assert tokens.advantages is not None
        a = tokens.advantages.double()
    mask = objective.mask
    if isinstance(mask, Clip):
        gain = torch.min(r * a, r.clamp(1 - mask.low, 1 + mask.high) * a)
        stable = ~((a > 0) & (r > 1 + mask.high)) & ~((a < 0) & (r < 1 - mask.low))
        if mask.dual is not None:
            gain = torch.where(a < 0, torch.max(gain, mask.dual * a), gain)
            stable &= ~((a < 0) & (r > mask.dual))
        return -gain, r, stable
    if isinstance(mask, WeightClip):
        stable = r.detach() <= 1 + mask.high
        if mask.drop:
            stable = ~((a > 0) & ~stable)
            weight = torch.where(stable, r, 0.0)
        else:
            weight = r.clamp(max=1 + mask.high)
        return -weight.detach() * a * logprobs, r, stable
    if isinstance(mask, Shaping):
        return -a * r / (r + mask.gamma), r, always
    if isinstance(mask, SoftGate):
        tau = torch.full_like(a, mask.tau_negative).masked_fill(a > 0, mask.tau_positive)
        return -(4 / tau) * torch.sigmoid(tau * (r - 1)) * a, r, always
    if objective.likelihood == "ratio":
        return -a * r, r, always
    return -r.detach() * a * logprobs, r, always


def _ratio(objective: Objective, tokens: TokenInputs, logprobs: Tensor) -> Tensor:
    """r = pi / pi_ref, differentiable."""
    if objective.reference == "policy":
        return (logprobs - logprobs.detach()).exp()
    if objective.reference == "one":
        return logprobs.exp()
    assert tokens.old_logprobs is not None
    log_ratio = logprobs - tokens.old_logprobs.double()
    if objective.reference == "sequence":
        assert tokens.sequence_ids is not None
        same = tokens.sequence_ids[:, None] == tokens.sequence_ids[None, :]
        log_ratio = (same.double() @ log_ratio) / same.sum(1)
    return log_ratio.exp()
