"""The public functions: `linear_logprobs` and `fused_policy_loss`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import checks, compiled, eager
from .importance import ImportanceRatio
from .inputs import HeadInputs, TokenArguments
from .objective import Objective
from .outputs import LogprobsOutput, PolicyLossOutput
from .token_loss import LossFormula

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    entropy: bool = False,
    lse: bool = False,
    top1: bool = False,
    group: ProcessGroup | None = None,
    backend: str = "auto",
) -> LogprobsOutput:
    """Log-probabilities (and entropies) of target tokens from hidden states and the head, without storing the logits.

    hidden:       (..., D) bfloat16, float16 or float32.
    weight:       (V, D) bfloat16, float16 or float32, as torch.nn.Linear stores it. Where its dtype is not that of
                  hidden, both are multiplied in the wider one, without a copy of the weight.
    targets:      (...) int64 or int32 in [0, V).
    mask:         (...) bool or integers, nonzero for tokens that count. Default: all. Other rows are never read.
    ignore_index: a target that does not count either.
    bias:         (V,) bfloat16, float16 or float32. Without a soft-cap, -inf switches an entry off.
    temperature:  a float or (...) of any float dtype, positive. Not differentiable.
    softcap:      a float, positive; None switches it off.
    logit_scale:  a float, positive (Granite's 1 / logits_scaling, Cohere's logit_scale).
    entropy, lse, top1: whether to return these too.
    group:        the process group over whose ranks the rows of weight (and bias) are sharded, in the order of ranks;
                  shards may differ in size. All other arguments are the same on every rank, and so are the results
                  and the gradient of hidden.
    backend:      "auto" (triton on a GPU, torch elsewhere), "triton" (needs a GPU), "torch" (any device), or
                  "reference" (float64, stores all logits, for tests).

    The logits are z = cap(logit_scale (hidden weight^T + bias)) / temperature, summed and kept in float32, with
    cap(u) = softcap * tanh(u / softcap).

    The results have the shape of targets and are differentiable in hidden, weight and bias for any upstream gradients.
    Log-probabilities are natural logarithms; entropies are in nats. The backward computes the logits again, so prefer
    `fused_policy_loss` where it can express the loss. A token's result does not depend on the other tokens, and equals
    `fused_policy_loss(...).logprobs` bit for bit.

    Raises ValueError or TypeError naming the argument, what it got and what is allowed.
    """
    head = _head_inputs(hidden, weight, targets, bias, temperature, softcap, logit_scale, ignore_index)
    checks.check_group(group)
    counted = _counted(mask, hidden, targets, ignore_index)
    with torch.autocast(hidden.device.type, enabled=False):
        if not torch.compiler.is_compiling():
            values = eager.linear_logprobs(head, counted, backend, group)
        elif group is None:
            values = compiled.linear_logprobs(head, counted, backend, differentiable=(entropy, lse))
        else:
            values = _uncompiled().linear_logprobs(head, counted, backend, group)
    results = [value.view(targets.shape) for value in values]
    return LogprobsOutput(
        results[0], results[1] if entropy else None, results[2] if lse else None, results[3] if top1 else None
    )


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
    tis: str = "token",
    tis_mode: str = "clip",
    tis_clip: float = 2.0,
    tis_min: float | None = None,
    sequence_ids: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    entropy_coef: float | Tensor = 0.0,
    kl_coef: float | Tensor = 0.0,
    lse_coef: float | Tensor = 0.0,
    kl: str = "k3",
    max_log_ratio: float = 20.0,
    columns: Mapping[str, Tensor] | None = None,
    evaluate: str = "needed",
    group: ProcessGroup | None = None,
    backend: str = "auto",
) -> PolicyLossOutput:
    """The policy loss of a batch of tokens from hidden states and the head, without storing the logits.

        loss = sum over counted tokens of w (tis surrogate - entropy_coef H + kl_coef KL + lse_coef lse^2)

    with w the token's weight, tis its truncated importance ratio, H its entropy in nats and lse the log-sum-exp of its
    logits. The surrogate is that of the token's objective, one case of the Unified Policy Gradient Estimator (Lv et al.
    2025, arXiv 2509.04419).

    hidden, weight, targets, ignore_index, bias, temperature, softcap, logit_scale, group, backend: as in
    `linear_logprobs`.
    objectives: one `upge.Objective` (`upge.GRPO()`, `upge.SFT()`, ...) or a list of them; each token follows one.

    Per token, each (...), floats of any dtype, and constant for the gradient:
    advantages:       A_hat. Ignored on tokens of SFT and DFT, needed by all other presets.
    weights:          the normaliser w, already global (over micro-batches and ranks). Default: 1/(tokens that count).
    objective_index:  integers in [0, len(objectives)). Needed with several objectives.
    old_logprobs:     log pi_old. Without them the tokens are on-policy: r = 1, with its gradient.
    ref_logprobs:     log-probabilities of the frozen reference model. Needed where kl_coef != 0.
    rollout_logprobs: as reported by the inference engine. The surrogate, but no other term, is multiplied by the
                      truncated importance ratio of old_logprobs to them, detached. For tokens that no engine sampled,
                      give the same number in both.
    sequence_ids:     integers. Needed by sequence-level objectives and ratios. A sequence's tokens may lie anywhere.
    mask:             bool or integers, nonzero for tokens that count. Default: all. Other rows are never read, so they
                      may hold NaN.
    columns:          extra values, by name, that user-defined objectives read as batch.NAME.

    entropy_coef, kl_coef, lse_coef: of the entropy bonus, the KL penalty and the z-loss: a float, or one per token.
    kl:            the estimator of the KL divergence, with d = ref_logprobs - logprobs: "k1" is -d, "k2" d^2 / 2, "abs"
                   |d|, "k3" e^d - d - 1, and "k3_ratio" k3 times pi / pi_old, with the gradient of both
                   (http://joschu.net/blog/kl-approx.html).
    tis, tis_mode, tis_clip, tis_min: the importance ratio of each "token", or of each "sequence" (the product over its
                   counted tokens); "clip" bounds it to [tis_min, tis_clip], "mask" makes it 0 outside.
    max_log_ratio: log pi - log pi_old, and d from above in "k3" and "k3_ratio", are cut at this size, with gradient 0
                   beyond, so that no gradient overflows.
    evaluate:      "needed", or "all" to compute the numbers of tokens without a gradient too (2 NVD for these).

    The gradients are computed together with the loss, chunk by chunk, and only for inputs that require them: with a
    frozen weight dW is not computed, and under no_grad no gradient is. A token known to have no gradient is skipped
    (see `PolicyLossOutput`).

    Raises ValueError or TypeError naming the argument, what it got and what is allowed.
    """
    head = _head_inputs(hidden, weight, targets, bias, temperature, softcap, logit_scale, ignore_index)
    formula = LossFormula(
        checks.check_objectives(objectives),
        ImportanceRatio(tis, tis_mode, tis_clip, tis_min),
        kl,
        max_log_ratio,
        evaluate,
    )
    checks.check_formula(formula)
    checks.check_group(group)
    coefficients = {"entropy_coef": entropy_coef, "kl_coef": kl_coef, "lse_coef": lse_coef}
    arguments = TokenArguments(
        weights=weights,
        mask=mask,
        objective_index=objective_index,
        advantages=advantages,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        rollout_logprobs=rollout_logprobs,
        sequence_ids=sequence_ids,
        columns={} if columns is None else columns,
        **{name: _coefficient(name, value, targets, hidden) for name, value in coefficients.items()},
    )
    checks.check_tokens(arguments, hidden)
    arguments = _flat(replace(arguments, mask=_counted(mask, hidden, targets, ignore_index)))
    with torch.autocast(hidden.device.type, enabled=False):
        if torch.compiler.is_compiling() and not formula.has_functions and group is None:
            out = compiled.policy_loss(head, arguments, formula, backend)
        elif torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            out = _uncompiled().policy_loss(head, arguments, formula, backend, group)
        else:
            out = eager.policy_loss(head, arguments, formula, backend, group)
    return PolicyLossOutput(out.loss, *(value.view(targets.shape) for value in out[1:]))


def _head_inputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float | Tensor,
    softcap: float | None,
    logit_scale: float,
    ignore_index: int,
) -> HeadInputs:
    """The checked inputs of N tokens. Under autocast, hidden and weight are cast as for torch.nn.functional.linear."""
    checks.check_head(hidden, weight, targets, bias)
    checks.check_scalars(temperature, softcap, logit_scale, ignore_index)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if isinstance(temperature, Tensor):
        checks.check_column("temperature", temperature, hidden, checks.VALUE_DTYPES)
        temperature = temperature.detach().float().reshape(-1)
    else:
        temperature = float(temperature)  # kernels and compiled ops tell 1 from 1.0
    if logit_scale != 1:
        # cap(s u) / T is cap'(u) / T' with the soft-cap and the temperature divided by s.
        temperature = temperature / logit_scale
        softcap = None if softcap is None else softcap / logit_scale
    softcap = None if softcap is None else float(softcap)
    return HeadInputs(hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), bias, temperature, softcap)


def _counted(mask: Tensor | None, hidden: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """(N,) bool: the tokens that count."""
    checks.check_column("mask", mask, hidden, (torch.bool, *checks.INTEGER_DTYPES))
    counted = targets != ignore_index
    if mask is not None:
        counted = counted & (mask != 0)
    return counted.reshape(-1)


def _coefficient(name: str, value: float | Tensor, targets: Tensor, hidden: Tensor) -> Tensor | None:
    """A coefficient as one number per token; None where it is switched off."""
    checks.check_coefficient(name, value, hidden)
    if isinstance(value, Tensor):
        return value
    if value == 0:
        return None
    return torch.full(targets.shape, float(value), dtype=torch.float32, device=hidden.device)


def _flat(arguments: TokenArguments) -> TokenArguments:
    """Every tensor as a constant (N,), in float32 where it is of another float dtype."""

    def flat(value: Tensor) -> Tensor:
        value = value.detach().reshape(-1)
        return value.float() if value.is_floating_point() else value

    tensors = {name: flat(value) for name, value in arguments.named().items()}
    columns = {name: tensors.pop(name) for name in arguments.columns}
    return replace(arguments, columns=columns, **tensors)


def _uncompiled() -> ModuleType:
    """The functions that torch.compile leaves alone; imported only once it is in use."""
    from . import uncompiled

    return uncompiled
