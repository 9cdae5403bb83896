"""The public functions: `linear_logprobs` and `fused_policy_loss`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks, compiled, eager
from .inputs import HeadInputs, TokenArguments
from .objective import Objective
from .outputs import LogprobsOutput, PolicyLossOutput
from .token_loss import LossFormula


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
    """Log-probabilities (and entropies) of target tokens from hidden states and the head, without storing the logits.

    hidden:      (N, D) bfloat16, float16 or float32.
    weight:      (V, D), the dtype of hidden, as torch.nn.Linear stores it.
    targets:     (N,) int64 or int32 in [0, V).
    bias:        (V,) bfloat16, float16 or float32.
    temperature: a float or (N,) float32, positive. Not differentiable.
    softcap:     a positive float; None switches it off.
    entropy:     whether to return entropies.
    backend:     "auto" (triton on a GPU, torch elsewhere), "triton" (needs a GPU), "torch" (any device), or "reference"
                 (float64, stores all logits, for tests).

    The logits are z = cap(hidden weight^T + bias) / temperature, summed and kept in float32, with
    cap(u) = softcap * tanh(u / softcap).

    Both results are (N,) float32, differentiable in hidden, weight and bias for any upstream gradients. Log-
    probabilities are natural logarithms; entropies are in nats. The backward computes the logits again, so prefer
    `fused_policy_loss` where it can express the loss. A token's result does not depend on the other tokens, and equals
    `fused_policy_loss(...).logprobs` bit for bit.

    Raises ValueError or TypeError naming the argument, what it got and what is allowed.
    """
    head = _head_inputs(hidden, weight, targets, bias, temperature, softcap)
    with torch.autocast(hidden.device.type, enabled=False):
        run = compiled.linear_logprobs if torch.compiler.is_compiling() else eager.linear_logprobs
        logprobs, entropies = run(head, backend)
    return LogprobsOutput(logprobs, entropies if entropy else None)


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
    """The policy loss of a batch of tokens from hidden states and the head, without storing the logits.

        loss = sum over counted tokens of w (surrogate - entropy_coef H + kl_coef (e^d - d - 1))

    with w the token's weight, H its entropy in nats and d = ref_logprobs - logprobs (the k3 estimator of the KL
    divergence, http://joschu.net/blog/kl-approx.html). The surrogate is that of the token's objective, one case of the
    Unified Policy Gradient Estimator (Lv et al. 2025, arXiv 2509.04419).

    hidden, weight, targets, bias, temperature, softcap, backend: as in `linear_logprobs`.
    objectives: one `upge.Objective` (`upge.GRPO()`, `upge.SFT()`, ...) or a list of them; each token follows one.

    Per token, each (N,) and constant for the gradient:
    advantages:       float32, A_hat. Ignored on tokens of SFT and DFT, needed by all other presets.
    weights:          float32, the normaliser w, already global (over micro-batches and ranks). Default: 1/(tokens that
                      count).
    objective_index:  integers in [0, len(objectives)). Needed with several objectives.
    old_logprobs:     float32, log pi_old. Needed by objectives with a ratio pi / pi_old.
    ref_logprobs:     float32, log-probabilities of the frozen reference model. Needed where kl_coef != 0.
    rollout_logprobs: float32, as reported by the inference engine. The w of every counted token, and with it the
                      entropy and KL terms, is multiplied by min(exp(old_logprobs - rollout_logprobs), tis_clip),
                      detached. For tokens that no engine sampled, give the same number in both.
    sequence_ids:     integers. Needed by sequence-level objectives. A sequence's tokens need not be adjacent.
    mask:             bool, True for tokens that count. Default: all. Masked rows are never read, so they may hold NaN
                      and the target -100.

    The gradients are computed together with the loss, chunk by chunk, and only for inputs that require them: with a
    frozen weight dW is not computed, and under no_grad no gradient is. A token known to have no gradient is skipped
    (see `PolicyLossOutput`).

    Raises ValueError or TypeError naming the argument, what it got and what is allowed.
    """
    head = _head_inputs(hidden, weight, targets, bias, temperature, softcap)
    formula = LossFormula(
        checks.check_objectives(objectives, objective_index), _as_float(entropy_coef), _as_float(kl_coef)
    )
    arguments = TokenArguments(
        weights=weights,
        mask=mask,
        objective_index=objective_index,
        advantages=advantages,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        rollout_logprobs=rollout_logprobs,
        sequence_ids=sequence_ids,
    )
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.compiler.is_compiling() and not formula.has_functions:
            return compiled.policy_loss(head, arguments, formula, tis_clip, backend)
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            from . import uncompiled

            return uncompiled.policy_loss(head, arguments, formula, tis_clip, backend)
        return eager.policy_loss(head, arguments, formula, tis_clip, backend)


def _head_inputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
) -> HeadInputs:
    """Under autocast, hidden and weight are cast as for torch.nn.functional.linear, and gradients flow through it."""
    checks.check_is_tensor("hidden", hidden)
    checks.check_is_tensor("weight", weight)
    if hidden.is_meta:
        raise ValueError("hidden: must be on a device that holds data; got meta")
    if isinstance(temperature, Tensor) and temperature.requires_grad and torch.is_grad_enabled():
        raise ValueError("temperature: must be a constant; got a tensor that requires a gradient: detach it")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not isinstance(temperature, Tensor):
        temperature = _as_float(temperature)
    return HeadInputs(hidden, weight, targets, bias, temperature, softcap)


def _as_float(value: float) -> float:
    """An int as a float, since kernels and compiled ops tell 1 from 1.0. Anything else is left for the checks."""
    return float(value) if isinstance(value, int) else value
