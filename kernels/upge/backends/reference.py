"""The `reference` backend: float64, all logits stored, and plain autograd through each paper's formula.

It shares no formula with the other backends: they use the coefficient of each objective, this one differentiates its
loss. That makes it worth comparing with. For tests: it needs about 40 bytes per token and vocabulary entry.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..inputs import HeadInputs, TokenInputs
from ..objective import Clip, Objective, ReferencePolicy, Shaping, SoftGate, StabilizationMask, WeightClip
from ..surrogate import call_function
from ..token_loss import Coefficients, LossFormula, TokenLosses
from .workspace import Statistics


def statistics(head: HeadInputs) -> Statistics:
    """The statistics of every token, (N,) float64, differentiable in the head's inputs."""
    z = head.hidden.double() @ head.weight.double().t()
    if head.bias is not None:
        z = z + head.bias.double()
    if head.softcap is not None:
        z = head.softcap * torch.tanh(z / head.softcap)
    temperature = head.temperature
    z = z / (temperature.double()[:, None] if isinstance(temperature, Tensor) else temperature)
    log_p, y = torch.log_softmax(z, dim=1), head.targets.long()[:, None]
    anchor, lse = z.gather(1, y).squeeze(1), torch.logsumexp(z, dim=1)
    return Statistics(
        logprobs=log_p.gather(1, y).squeeze(1),
        entropy=-(log_p.exp() * log_p.clamp(min=-1e30)).sum(1),
        lse=lse,
        anchor=anchor,
        log_total=lse - anchor,
        top1=anchor == z.amax(1),
    )


def policy_loss(tokens: TokenInputs, formula: LossFormula, values: Statistics) -> tuple[Tensor, TokenLosses]:
    """The differentiable loss () of n tokens, and their values, detached. values: from `statistics`."""
    # inference_mode(False) also turns gradients on. Tensors made in inference mode cannot have any, so copy them.
    with torch.inference_mode(False):
        copies = tokens.map(torch.clone)
        leaf, entropy, lse = (x.detach().clone() for x in (values.logprobs, values.entropy, values.lse))
        leaf, entropy = leaf.requires_grad_(), entropy.requires_grad_()  # a function may depend on either
        per_token, ratio, stable = _per_token(copies, formula, leaf, entropy, lse)
        (coefficient,) = torch.autograd.grad(per_token.sum(), leaf, materialize_grads=True)
    if torch.is_grad_enabled():
        per_token = _per_token(tokens, formula, values.logprobs, values.entropy, values.lse)[0]
    return per_token.sum(), TokenLosses(per_token.detach(), Coefficients(coefficient), ratio.detach(), stable)


def _per_token(
    tokens: TokenInputs, formula: LossFormula, logprobs: Tensor, entropy: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss of each token, its ratio, and stable."""
    index, weights = tokens.objective_index, tokens.weights.double()
    loss, ratio = logprobs * 0.0, torch.ones_like(logprobs)
    stable = torch.ones_like(logprobs, dtype=torch.bool)
    for number, objective in enumerate(formula.objectives):
        follows = torch.ones_like(stable) if len(formula.objectives) == 1 or index is None else index == number
        rows = follows.nonzero().squeeze(1)
        if not rows.numel():
            continue
        part, l = tokens.at(rows), logprobs[rows]
        surrogate, r, unclipped = _surrogate(objective, part, l, entropy[rows], formula.max_log_ratio)
        loss = loss.index_add(0, rows, part.policy_weights.double() * surrogate)
        ratio, stable = ratio.index_copy(0, rows, r.detach().double()), stable.index_copy(0, rows, unclipped)
        if tokens.kl_coef is not None:
            penalty = _kl(formula, objective, part, l)
            loss = loss.index_add(0, rows, weights[rows] * penalty)
    if tokens.entropy_coef is not None:
        loss = loss - weights * tokens.entropy_coef.double() * entropy
    if tokens.lse_coef is not None:
        loss = loss + weights * tokens.lse_coef.double() * lse.square()
    return loss, ratio, stable


def _kl(formula: LossFormula, objective: Objective, tokens: TokenInputs, logprobs: Tensor) -> Tensor:
    """The KL penalty of each token before its weight."""
    assert tokens.ref_logprobs is not None
    assert tokens.kl_coef is not None
    kl_coef = tokens.kl_coef
    reference: ReferencePolicy = "sequence" if objective.reference == "sequence" else "rollout"
    unread = kl_coef == 0  # log-probabilities may be NaN there
    gap = (tokens.ref_logprobs.double() - logprobs).masked_fill(unread, 0.0)
    if tokens.old_logprobs is not None and reference == "rollout":
        tokens = replace(tokens, old_logprobs=tokens.old_logprobs.masked_fill(unread, 0.0))
    exponent = gap.clamp(max=formula.max_log_ratio)
    k3 = exponent.exp() - exponent - 1
    estimates = {
        "k1": lambda: -gap,
        "k2": lambda: gap.square() / 2,
        "abs": lambda: gap.abs(),
        "k3": lambda: k3,
        "k3_ratio": lambda: k3 * _log_ratio(reference, tokens, logprobs, formula.max_log_ratio)[0].exp(),
    }
    return kl_coef.double() * estimates[formula.kl]()


def _surrogate(
    objective: Objective, tokens: TokenInputs, logprobs: Tensor, entropy: Tensor, max_log_ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each token before its weight, its ratio, and stable."""
    always = torch.ones_like(logprobs, dtype=torch.bool)
    if objective.function is not None:
        found = call_function(objective, tokens, logprobs, entropy)
        ratio = torch.ones_like(logprobs) if found.ratio is None else found.ratio
        return found.loss, ratio, always if found.stable is None else found.stable
    log_r, uncut = _log_ratio(objective.reference, tokens, logprobs, max_log_ratio)
    r = log_r.exp()
    a = torch.ones_like(logprobs)
    if objective.advantage == "given":
        assert tokens.advantages is not None
        a = tokens.advantages.double()
    gain, stable = _gain(objective.mask, r, a)
    if objective.likelihood == "ratio":
        return -gain * a, r, stable & uncut
    if isinstance(objective.mask, WeightClip):
        return -gain.detach() * a * logprobs, r, stable & uncut
    # The coefficient c = r d gain / d r, by autograd, detached.
    with torch.enable_grad():
        leaf = r.detach().requires_grad_()
        masked = _gain(objective.mask, leaf, a)[0]
        (slope,) = torch.autograd.grad(masked.sum(), leaf)
    return -(slope * leaf).detach() * a * logprobs, r, stable & uncut


def _gain(mask: StabilizationMask, r: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """What the mask makes of r, for tokens with advantage `a`, and stable."""
    always = torch.ones_like(r, dtype=torch.bool)
    if isinstance(mask, Clip):
        # min(r A, clip(r) A) / A, by cases.
        clipped = torch.where(a > 0, r.clamp(max=1 + mask.high), torch.where(a < 0, r.clamp(min=1 - mask.low), r))
        stable = ~((a > 0) & (r > 1 + mask.high)) & ~((a < 0) & (r < 1 - mask.low))
        if mask.dual is not None:
            clipped = torch.where(a < 0, clipped.clamp(max=mask.dual), clipped)
            stable &= ~((a < 0) & (r > mask.dual))
        return clipped, stable
    if isinstance(mask, WeightClip):
        inside = (r <= mask.upper) & (r >= mask.lower)
        if mask.drop:
            stable = inside | ((a <= 0) & (r > mask.upper)) | ((a >= 0) & (r < mask.lower))
            return torch.where(stable, r, 0.0), stable
        return r.clamp(mask.lower, mask.upper), inside
    if isinstance(mask, Shaping):
        return r / (r + mask.gamma), always
    if isinstance(mask, SoftGate):
        tau = torch.full_like(a, mask.tau_negative).masked_fill(a > 0, mask.tau_positive)
        return (4 / tau) * torch.sigmoid(tau * (r - 1)), always
    return r, always


def _log_ratio(
    reference: ReferencePolicy, tokens: TokenInputs, logprobs: Tensor, max_log_ratio: float
) -> tuple[Tensor, Tensor]:
    """log r = log pi - log pi_ref, differentiable, and whether it is within the cut."""
    if reference == "one":
        return logprobs, torch.ones_like(logprobs, dtype=torch.bool)
    if reference == "policy" or tokens.old_logprobs is None:
        log_ratio = logprobs - logprobs.detach()
    else:
        log_ratio = logprobs - tokens.old_logprobs.double()
    if reference == "sequence":
        assert tokens.sequence_ids is not None
        same = tokens.sequence_ids[:, None] == tokens.sequence_ids[None, :]
        log_ratio = (same.double() @ log_ratio) / same.sum(1)
    return log_ratio.clamp(-max_log_ratio, max_log_ratio), log_ratio.detach().abs() <= max_log_ratio
