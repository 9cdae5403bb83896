"""The two functions without torch.compile: check the inputs, complete them, run the backend."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from . import autograd, backends, checks
from .backends import passes, reference
from .backends.workspace import Gradients, MakeWorkspace
from .inputs import HeadInputs, NeededGradients, TokenArguments, TokenInputs
from .outputs import PolicyLossOutput
from .token_loss import LossFormula, TokenLosses


def linear_logprobs(head: HeadInputs, backend: str) -> tuple[Tensor, Tensor]:
    """log pi(y) and entropy, (N,) float32."""
    make_workspace = check_head(head, backend)
    if make_workspace is None:
        logprobs, entropy = reference.logprobs(head)
        return logprobs.float(), entropy.float()
    needs = NeededGradients.of(head)
    if not needs:
        found = passes.statistics(make_workspace, head, torch.arange(head.token_count, device=head.hidden.device))
        return found.logprobs, found.entropy
    result: tuple[Tensor, Tensor] = autograd.LinearLogprobs.apply(  # type: ignore[no-untyped-call]
        head.hidden, head.weight, head.bias, head, make_workspace, needs
    )
    return result


def policy_loss(
    head: HeadInputs, arguments: TokenArguments, formula: LossFormula, tis_clip: float, backend: str
) -> PolicyLossOutput:
    make_workspace = check_head(head, backend, arguments.mask)
    tokens = complete_tokens(arguments, head, formula, tis_clip)
    if make_workspace is None:
        return _reference_loss(head, tokens, formula)
    needs = NeededGradients.of(head)
    with torch.no_grad():
        out, gradients = chunked_loss(make_workspace, head, tokens, formula, needs)
    if not needs:
        return out
    loss: Tensor = autograd.PolicyLoss.apply(  # type: ignore[no-untyped-call]
        head.hidden, head.weight, head.bias, out.loss, gradients
    )
    return out._replace(loss=loss)


def check_head(head: HeadInputs, backend: str, mask: Tensor | None = None) -> MakeWorkspace | None:
    """Check the head's inputs. Returns the backend's workspace class, or None for the reference backend."""
    checks.check_head(head)
    checks.check_vector("mask", mask, head, (torch.bool,))
    if checks.reads_values(head.hidden.device):
        checks.check_head_values(head, mask)
    return backends.workspace_class(backend, head.hidden.device)


def complete_tokens(arguments: TokenArguments, head: HeadInputs, formula: LossFormula, tis_clip: float) -> TokenInputs:
    """Check the per-token arguments, fill in default weights, and multiply in the truncated importance ratio."""
    uses_kl = formula.kl_coef != 0
    checks.check_finite("entropy_coef", formula.entropy_coef)
    checks.check_finite("kl_coef", formula.kl_coef)
    checks.check_tokens(arguments, head, formula.objectives, uses_kl, tis_clip)
    if checks.reads_values(head.hidden.device):
        checks.check_token_values(arguments, head, formula.objectives, uses_kl)
    weights = arguments.weights
    if weights is None:
        count = head.hidden.new_tensor(head.token_count) if arguments.mask is None else arguments.mask.sum()
        weights = (1.0 / count.float().clamp(min=1)).expand(head.token_count)
    if arguments.rollout_logprobs is not None and arguments.old_logprobs is not None:
        weights = weights * (arguments.old_logprobs - arguments.rollout_logprobs).exp().clamp(max=tis_clip)
    others = {field.name: getattr(arguments, field.name) for field in fields(arguments) if field.name != "weights"}
    return TokenInputs(weights=weights, **others).map(lambda vector: vector.detach().contiguous())


def chunked_loss(
    make_workspace: MakeWorkspace, head: HeadInputs, tokens: TokenInputs, formula: LossFormula, needs: NeededGradients
) -> tuple[PolicyLossOutput, Gradients]:
    """The loss, detached, and its gradients."""
    rows = formula.tokens_with_gradient(tokens)
    statistics, losses, gradients = passes.policy_loss(make_workspace, head, tokens, formula, rows, needs)
    loss = losses.loss.double().sum().float()
    return _output(loss, tokens, rows, statistics.logprobs, statistics.entropy, losses), gradients


def _reference_loss(head: HeadInputs, tokens: TokenInputs, formula: LossFormula) -> PolicyLossOutput:
    rows = formula.tokens_with_gradient(tokens)
    logprobs, entropy = reference.logprobs(head.at(rows))
    loss, losses = reference.policy_loss(tokens.at(rows), formula, logprobs, entropy)
    return _output(loss.float(), tokens, rows, logprobs.detach(), entropy.detach(), losses)


def _output(
    loss: Tensor, tokens: TokenInputs, rows: Tensor, logprobs: Tensor, entropy: Tensor, losses: TokenLosses
) -> PolicyLossOutput:
    """Spread the values of the evaluated tokens, at the positions `rows` (n,), over all N."""
    zeros = torch.zeros_like(tokens.weights)
    counted = torch.ones_like(zeros, dtype=torch.bool) if tokens.mask is None else tokens.mask
    unknown = zeros.masked_fill(counted, float("nan"))

    def spread(values: Tensor, others: Tensor) -> Tensor:
        return others.index_copy(0, rows, values.to(others.dtype))

    return PolicyLossOutput(
        loss=loss,
        logprobs=spread(logprobs, unknown),
        entropy=spread(entropy, unknown),
        ratio=spread(losses.ratio, unknown),
        coefficient=spread(losses.coefficients.g, zeros),
        stable=spread(losses.stable, counted),
        evaluated=spread(torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(counted)),
    )
