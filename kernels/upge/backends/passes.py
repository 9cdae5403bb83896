"""The passes over chunks of tokens, the same for all chunked backends. NVD: see kernels/README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs import HeadInputs, NeededGradients, TokenInputs
from ..token_loss import LossFormula, TokenLosses
from .workspace import Gradients, MakeWorkspace, Statistics, Workspace


def logprobs(make_workspace: MakeWorkspace, head: HeadInputs) -> tuple[Tensor, Tensor]:
    """log pi(y) and the entropy of every token, (N,) float32. Costs 2 NVD."""
    with torch.cuda.device_of(head.hidden):  # kernels start on the current device
        workspace = make_workspace(head, NeededGradients())
        rows = torch.arange(head.token_count, device=head.hidden.device)
        statistics = _statistics(workspace, rows)
        return statistics.logprobs, statistics.entropy


def logprobs_backward(
    make_workspace: MakeWorkspace, head: HeadInputs, needs: NeededGradients, g: Tensor, q: Tensor | None
) -> Gradients:
    """Gradients for g = d loss / d logprobs and q = d loss / d entropy, each (N,). Computes the logits again."""
    with torch.cuda.device_of(head.hidden):
        workspace = make_workspace(head, needs)
        for chunk in workspace.chunks(_nonzero(g, q)):
            workspace.backward(chunk, workspace.forward(chunk, keep=True), g[chunk], None if q is None else q[chunk])
        return workspace.gradients


def policy_loss(
    make_workspace: MakeWorkspace,
    head: HeadInputs,
    tokens: TokenInputs,
    formula: LossFormula,
    rows: Tensor,
    needs: NeededGradients,
) -> tuple[Statistics, TokenLosses, Gradients]:
    """Statistics, losses and gradients of the tokens at the positions `rows` (n,).

    One pass, 6 NVD. If coefficients depend on other tokens, a first pass computes all log-probabilities and a second
    one, over the tokens whose coefficient is not 0, the gradients: at most 8 NVD.
    """
    with torch.cuda.device_of(head.hidden):
        workspace = make_workspace(head, needs)
        if formula.needs_all_tokens:
            return _two_passes(workspace, tokens, formula, rows)
        return _one_pass(workspace, tokens, formula, rows)


def _one_pass(
    workspace: Workspace, tokens: TokenInputs, formula: LossFormula, rows: Tensor
) -> tuple[Statistics, TokenLosses, Gradients]:
    all_statistics: list[Statistics] = []
    all_losses: list[TokenLosses] = []
    for chunk in workspace.chunks(rows):
        statistics = workspace.forward(chunk, keep=bool(workspace.needs))
        losses = workspace.losses(formula, tokens, chunk, statistics)
        if workspace.needs:
            workspace.backward(chunk, statistics, losses.coefficient, losses.entropy_coefficient)
        all_statistics.append(statistics)
        all_losses.append(losses)
    losses = TokenLosses.cat(all_losses) if all_losses else formula.no_losses(rows.device)
    return Statistics.cat(all_statistics, rows.device), losses, workspace.gradients


def _two_passes(
    workspace: Workspace, tokens: TokenInputs, formula: LossFormula, rows: Tensor
) -> tuple[Statistics, TokenLosses, Gradients]:
    statistics = _statistics(workspace, rows)
    losses = formula.losses(tokens.at(rows), statistics.logprobs, statistics.entropy)
    if workspace.needs:
        g, q = losses.coefficient, losses.entropy_coefficient
        for part in workspace.chunks(_nonzero(g, q)):
            chunk = rows[part]
            workspace.backward(chunk, workspace.forward(chunk, keep=True), g[part], None if q is None else q[part])
    return statistics, losses, workspace.gradients


def _statistics(workspace: Workspace, rows: Tensor) -> Statistics:
    return Statistics.cat([workspace.forward(chunk, keep=False) for chunk in workspace.chunks(rows)], rows.device)


def _nonzero(g: Tensor, q: Tensor | None) -> Tensor:
    """Positions of the tokens that have a gradient."""
    return (g != 0 if q is None else (g != 0) | (q != 0)).nonzero().squeeze(1)
