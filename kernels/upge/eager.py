"""The two functions without torch.compile: check the values, complete the inputs, run the backend."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

from . import autograd, backends, checks, value_checks
from .backends import passes, reference
from .backends.workspace import Columns, Gradients, MakeWorkspace, Statistics
from .inputs import HeadInputs, NeededGradients, TokenArguments, TokenInputs
from .outputs import PolicyLossOutput
from .token_loss import LossFormula, TokenLosses
from .vocabulary import VocabularyShard


def linear_logprobs(head: HeadInputs, counted: Tensor, backend: str, group: dist.ProcessGroup | None = None) -> Columns:
    """log pi(y), entropy, log-sum-exp (float32) and top1 (bool), each (N,)."""
    head = _sharded(head, group, backend)
    make_workspace = workspace_class(head, counted, backend)
    rows = counted.nonzero().squeeze(1)
    if make_workspace is None:
        return reference.statistics(head.at(rows)).spread(rows, head.token_count)
    needs = NeededGradients.of(head)
    if not needs:
        return passes.statistics(make_workspace, head, rows).spread(rows, head.token_count)
    result: Columns = autograd.LinearLogprobs.apply(  # type: ignore[no-untyped-call]
        head.hidden, head.weight, head.bias, head, rows, make_workspace, needs
    )
    return result


def policy_loss(
    head: HeadInputs,
    arguments: TokenArguments,
    formula: LossFormula,
    backend: str,
    group: dist.ProcessGroup | None = None,
) -> PolicyLossOutput:
    head = _sharded(head, group, backend)
    assert arguments.mask is not None
    make_workspace = workspace_class(head, arguments.mask, backend)
    tokens = complete_tokens(arguments, head, formula)
    if make_workspace is None:
        return _reference_loss(head, tokens, formula)
    entropy = formula.has_functions or tokens.entropy_coef is not None
    needs = replace(NeededGradients.of(head), entropy=entropy)
    with torch.no_grad():
        out, gradients = chunked_loss(make_workspace, head, tokens, formula, needs)
    if not needs:
        return out
    loss: Tensor = autograd.PolicyLoss.apply(  # type: ignore[no-untyped-call]
        head.hidden, head.weight, head.bias, out.loss, gradients
    )
    return out._replace(loss=loss)


def _sharded(head: HeadInputs, group: dist.ProcessGroup | None, backend: str) -> HeadInputs:
    """The head whose weight is this rank's shard of the vocabulary, if there is a group."""
    if group is None:
        return head
    if backend == "reference":
        raise ValueError("backend: 'reference' has no group; use 'torch', or gather the weight")
    return replace(head, shard=VocabularyShard.of(group, head.weight))


def workspace_class(head: HeadInputs, counted: Tensor, backend: str) -> MakeWorkspace | None:
    """The backend's workspace class, or None for the reference backend. Checks the head's values."""
    found = backends.workspace_class(backend, head.hidden.device, sharded=head.shard is not None)
    value_checks.check_head_values(head, counted)
    return found


def complete_tokens(arguments: TokenArguments, head: HeadInputs, formula: LossFormula) -> TokenInputs:
    """Check what the formula reads, fill in default weights, and form the truncated importance ratio."""
    checks.check_needs(arguments, formula)
    value_checks.check_token_values(arguments, head, formula)
    given = {item.name: getattr(arguments, item.name) for item in fields(arguments)}
    mask = arguments.mask
    assert mask is not None
    if arguments.weights is None:
        given["weights"] = (1.0 / mask.sum().float().clamp(min=1)).expand(head.token_count)
    if arguments.rollout_logprobs is not None:
        assert arguments.old_logprobs is not None
        given["importance"] = formula.importance.of(
            arguments.old_logprobs, arguments.rollout_logprobs, arguments.sequence_ids, mask
        )
    return TokenInputs(**given).map(torch.Tensor.contiguous)


def chunked_loss(
    make_workspace: MakeWorkspace, head: HeadInputs, tokens: TokenInputs, formula: LossFormula, needs: NeededGradients
) -> tuple[PolicyLossOutput, Gradients]:
    """The loss, detached, and its gradients."""
    trained, others = _evaluated(tokens, formula)
    statistics, losses, gradients = passes.policy_loss(make_workspace, head, tokens, formula, trained, others, needs)
    loss = losses.loss.double().sum().float()
    return _output(loss, tokens, torch.cat([trained, others]), statistics, losses), gradients


def _reference_loss(head: HeadInputs, tokens: TokenInputs, formula: LossFormula) -> PolicyLossOutput:
    rows = torch.cat(_evaluated(tokens, formula))
    statistics = reference.statistics(head.at(rows))
    loss, losses = reference.policy_loss(tokens.at(rows), formula, statistics)
    return _output(loss.float(), tokens, rows, statistics, losses)


def _evaluated(tokens: TokenInputs, formula: LossFormula) -> tuple[Tensor, Tensor]:
    """Positions of the tokens that can have a gradient, and of the others whose numbers are asked for.

    On a GPU, counting them makes the CPU wait: the only time in a call with one pass.
    """
    trained = formula.tokens_with_gradient(tokens)
    rows = trained.nonzero().squeeze(1)
    if formula.evaluate != "all":
        return rows, rows[:0]
    return rows, (tokens.mask & ~trained).nonzero().squeeze(1)


def _output(
    loss: Tensor, tokens: TokenInputs, rows: Tensor, statistics: Statistics, losses: TokenLosses
) -> PolicyLossOutput:
    """Spread the values of the evaluated tokens, at the positions `rows` (n,), over all N."""
    zeros, no = torch.zeros_like(tokens.weights), torch.zeros_like(tokens.mask)
    unknown = zeros.masked_fill(tokens.mask, float("nan"))

    def spread(values: Tensor, others: Tensor) -> Tensor:
        return others.index_copy(0, rows, values.detach().to(others.dtype))

    return PolicyLossOutput(
        loss=loss,
        token_loss=spread(losses.loss, zeros),
        logprobs=spread(statistics.logprobs, unknown),
        entropy=spread(statistics.entropy, unknown),
        ratio=spread(losses.ratio, unknown),
        coefficient=spread(losses.coefficients.g, zeros),
        stable=spread(losses.stable, tokens.mask),
        evaluated=spread(torch.ones_like(rows, dtype=torch.bool), no),
        top1=spread(statistics.top1, no),
    )
