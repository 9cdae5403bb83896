"""The public functions: `fused_policy_loss` and `linear_logprobs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import autograd, backends, checks, compiled
from .backends import reference
from .backends.workspace import Gradients, Workspace, logprobs, policy_loss
from .coefficient import TokenLoss, TokenStep
from .inputs import Head, Needs, Tokens
from .objective import Objective


class LogprobsOutput(NamedTuple):
    """logprobs: (N,) float32, log pi(y), differentiable. entropy: (N,) float32 in nats, differentiable, or None."""

    logprobs: Tensor
    entropy: Tensor | None


class PolicyLossOutput(NamedTuple):
    """What `fused_policy_loss` returns.

    loss:        () float32, the sum of the tokens' weighted losses, differentiable in hidden, weight and bias.

    Per token, (N,), detached:
    logprobs:    float32, log pi(y).
    entropy:     float32, nats.
    ratio:       float32, r = pi / pi_ref of the token's objective (1 where pi_ref is pi itself; saturates at e^80).
    coefficient: float32, g = d loss / d logprobs: the number that the UPGE is about.
    stable:      bool, False where the objective's mask (clip or weight clip) holds the token back.
    evaluated:   bool, the tokens whose logits were computed: those that count and can have a gradient.

    A masked token reads 0 (False) everywhere. A token that counts but is known to have g = 0 (its advantage or its
    weight is 0 and no regulariser is on) costs nothing, so its logprobs, entropy and ratio are unknown and read NaN,
    its coefficient 0 and stable True. Take means of statistics over `evaluated`.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    ratio: Tensor
    coefficient: Tensor
    stable: Tensor
    evaluated: Tensor


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    backend: str = "auto",
) -> LogprobsOutput:
    """Log-probabilities of target tokens (and entropies) from hidden states and the head, without ever forming logits.

    hidden (N, D) and weight (V, D): bfloat16, float16 or float32, one dtype; targets (N,): int64 or int32 in [0, V).
    bias (V,): any of those dtypes. Logits are z = cap(hidden weight^T + bias) / temperature, summed and kept in
    float32, cap(u) = softcap * tanh(u / softcap) where softcap is given; temperature is a float or (N,) float32.

    Differentiable in hidden, weight and bias through both results, with any upstream gradients. The backward computes
    the logits again, so prefer `fused_policy_loss` where it can state the loss. A token's result does not depend on the
    tokens beside it, and equals `fused_policy_loss(...).logprobs` bit by bit.

    backend: "auto" (triton on a GPU, torch elsewhere), "triton" (needs a GPU), "torch" (any device) or "reference"
    (float64, materialises everything, for tests).
    Raises ValueError or TypeError naming the argument, what came and what is allowed.
    """
    head = _head(hidden, weight, targets, bias, temperature, softcap)
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.compiler.is_compiling():
            values, entropies = compiled.linear_logprobs(head, _needs(head), backend)
        elif (kind := check_head(head, backend)) is None:
            values, entropies = (x.float() for x in reference.logprobs(head))
        elif needs := _needs(head):
            values, entropies = autograd.LinearLogprobs.apply(head.hidden, head.weight, head.bias, head, kind, needs)
        else:
            values, entropies = logprobs(kind, head)
    return LogprobsOutput(values, entropies if entropy else None)


def fused_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    objectives: Objective | Sequence[Objective],
    *,
    advantages: Tensor | None = None,
    weights: Tensor | None = None,
    objective_index: Tensor | None = None,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    tis_clip: float = 2.0,
    sequence_ids: Tensor | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy_coef: float = 0.0,
    kl_coef: float = 0.0,
    backend: str = "auto",
) -> PolicyLossOutput:
    """The policy loss of a batch of tokens, from hidden states and the head, without ever forming logits.

        loss = sum over counted tokens of w (surrogate - entropy_coef H + kl_coef (e^d - d - 1))

    with H the entropy and d = ref_logprobs - logprobs (the k3 estimator of the KL divergence).

    hidden, weight, targets, bias, temperature, softcap, backend: as in `linear_logprobs`. objectives: one
    `upge.Objective` (`upge.GRPO()`, `upge.SFT()`, ...) or a list of them, of which each token follows one.

    Per token, all (N,) and constants to the gradient:
    advantages:       float32, A_hat; ignored on rows of SFT and DFT, needed by every other preset.
    weights:          float32, the normaliser w, already global (over micro-batches and ranks); default
                      1/(tokens that count).
    objective_index:  integer in [0, len(objectives)); needed with several objectives.
    old_logprobs:     float32, log pi_old; needed by objectives whose reference is the rollout policy.
    ref_logprobs:     float32, of the frozen reference model; needed where kl_coef != 0.
    rollout_logprobs: float32, as the inference engine reported them. w of every counted token (and with it its entropy
                      and KL terms) is multiplied by min(exp(old_logprobs - rollout_logprobs), tis_clip), detached; give
                      rows that no engine sampled the same number in both.
    sequence_ids:     integer; needed by sequence-level objectives. A sequence's rows need not be adjacent.
    mask:             bool, the tokens that count; default all. Whatever a masked row holds (NaN and target -100
                      included) is never read.

    The gradients are computed with the loss, chunk by chunk, and only for inputs that require them: a frozen weight
    costs no dW, no_grad costs no gradient at all. A token known to have no gradient costs nothing (`PolicyLossOutput`).
    Raises ValueError or TypeError naming the argument, what came and what is allowed.
    """
    head = _head(hidden, weight, targets, bias, temperature, softcap)
    step = TokenStep(checks.objectives(objectives, objective_index), _float(entropy_coef), _float(kl_coef))
    tokens = Tokens(
        weights, mask, objective_index, advantages, old_logprobs, ref_logprobs, rollout_logprobs, sequence_ids
    )
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.compiler.is_compiling() and all(o.function is None for o in step.objectives):
            return PolicyLossOutput(*compiled.policy_loss(head, tokens, step, tis_clip, _needs(head), backend))
        return _eager_loss(head, tokens, step, tis_clip, backend)


@torch.compiler.disable(reason="an objective made from a function needs autograd, and a compiled op has none inside")
def _eager_loss(head: Head, tokens: Tokens, step: TokenStep, tis_clip: float, backend: str) -> PolicyLossOutput:
    kind = check_head(head, backend, tokens.mask)
    tokens = finish_tokens(tokens, head, step, tis_clip)
    if kind is None:
        return _reference_loss(head, tokens, step)
    needs = _needs(head)
    if not needs:
        return chunked_loss(kind, head, tokens, step, needs)[0]
    found: list[PolicyLossOutput] = []

    def compute() -> tuple[Tensor, Gradients]:
        out, gradients = chunked_loss(kind, head, tokens, step, needs)
        found.append(out)
        return out.loss, gradients

    loss = autograd.PolicyLoss.apply(head.hidden, head.weight, head.bias, compute)
    return found[0]._replace(loss=loss)


def check_head(head: Head, backend: str, mask: Tensor | None = None) -> type[Workspace] | None:
    """Check the head's inputs; the workspace of the backend, None for the reference."""
    checks.head(head)
    checks.vector("mask", mask, head, (torch.bool,))
    if checks.reads_values(head.hidden.device):
        checks.head_values(head, mask)
    return backends.choose(backend, head.hidden.device)


def finish_tokens(tokens: Tokens, head: Head, step: TokenStep, tis_clip: float) -> Tokens:
    """Check the per-token inputs; fill in the default weights and multiply in the truncated importance ratio."""
    checks.coefficient("entropy_coef", step.entropy_coef)
    checks.coefficient("kl_coef", step.kl_coef)
    checks.tokens(tokens, head, step.objectives, step.kl_coef != 0, tis_clip)
    if checks.reads_values(head.hidden.device):
        checks.token_values(tokens, head, step.objectives, step.kl_coef != 0)
    weights = tokens.weights
    if weights is None:
        count = head.hidden.new_tensor(head.tokens) if tokens.mask is None else tokens.mask.sum()
        weights = (1.0 / count.float().clamp(min=1)).expand(head.tokens)
    if tokens.rollout_logprobs is not None and tokens.old_logprobs is not None:
        weights = weights * (tokens.old_logprobs - tokens.rollout_logprobs).exp().clamp(max=tis_clip)
    return replace(tokens, weights=weights).map(lambda vector: vector.detach().contiguous())


def chunked_loss(
    kind: type[Workspace], head: Head, tokens: Tokens, step: TokenStep, needs: Needs
) -> tuple[PolicyLossOutput, Gradients]:
    """The loss, detached, and the gradients of finished inputs."""
    rows = step.live(tokens)
    forward, per_token, gradients = policy_loss(kind, head, tokens, step, rows, needs)
    loss = per_token.loss.double().sum().float()
    return _output(loss, tokens, rows, forward.logprobs, forward.entropy, per_token), gradients


def _reference_loss(head: Head, tokens: Tokens, step: TokenStep) -> PolicyLossOutput:
    rows = step.live(tokens)
    logprobs, entropy = reference.logprobs(head.at(rows))
    outcome = reference.policy_loss(tokens.at(rows), step, logprobs, entropy)
    per_token = TokenLoss(logprobs, outcome.coefficient, outcome.ratio, outcome.stable)
    return _output(outcome.loss.float(), tokens, rows, logprobs.detach(), entropy.detach(), per_token)


def _output(
    loss: Tensor, tokens: Tokens, rows: Tensor, logprobs: Tensor, entropy: Tensor, per_token: TokenLoss
) -> PolicyLossOutput:
    """Spread the values of the evaluated rows over all N."""
    counted = torch.ones_like(tokens.weights, dtype=torch.bool) if tokens.mask is None else tokens.mask
    unknown = torch.zeros_like(tokens.weights).masked_fill(counted, float("nan"))
    place = lambda whole, values: whole.index_copy(0, rows, values.to(whole.dtype))
    return PolicyLossOutput(
        loss,
        place(unknown, logprobs),
        place(unknown, entropy),
        place(unknown, per_token.ratio),
        place(torch.zeros_like(unknown), per_token.coefficient),
        place(counted, per_token.stable),
        place(torch.zeros_like(counted), torch.ones_like(rows, dtype=torch.bool)),
    )


def _head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
) -> Head:
    """The head. Autocast casts hidden and weight as it would for F.linear; gradients flow through the cast."""
    for name, value in (("hidden", hidden), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: must be a tensor; got {type(value).__name__}")
    if hidden.is_meta:
        raise ValueError("hidden: must be on a device that holds data; got meta")
    if isinstance(temperature, Tensor) and temperature.requires_grad and torch.is_grad_enabled():
        raise ValueError("temperature: is a constant to the loss; got one that requires a gradient: detach it")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    return Head(hidden, weight, targets, bias, _float(temperature), softcap)


def _float(value: Any) -> Any:
    """Kernels and compiled ops tell 1 from 1.0; whether it is a number at all is checked with the other inputs."""
    return float(value) if isinstance(value, int) else value


def _needs(head: Head) -> Needs:
    wanted = lambda x: torch.is_grad_enabled() and x is not None and x.requires_grad
    return Needs(wanted(head.hidden), wanted(head.weight), wanted(head.bias))
