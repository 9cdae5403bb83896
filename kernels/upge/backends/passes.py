"""The passes over chunks of tokens, the same for all chunked backends. NVD: see kernels/README.md."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..inputs import HeadInputs, NeededGradients, TokenInputs
from ..token_loss import Coefficients, LossFormula, TokenLosses
from .workspace import Gradients, MakeWorkspace, Statistics, Workspace


def statistics(make_workspace: MakeWorkspace, head: HeadInputs, rows: Tensor) -> Statistics:
    """The statistics of the tokens at the positions `rows` (n,). Costs 2 NVD."""
    with torch.cuda.device_of(head.hidden):  # kernels start on the current device
        return _forward(make_workspace(head, NeededGradients()), rows)


def gradients(
    make_workspace: MakeWorkspace, head: HeadInputs, needs: NeededGradients, rows: Tensor, coefficients: Coefficients
) -> Gradients:
    """The gradients of the tokens at the positions `rows` (n,). Computes the logits again: 6 NVD."""
    with torch.cuda.device_of(head.hidden):
        workspace = make_workspace(head, replace(needs, entropy=coefficients.q is not None))
        _backward(workspace, rows, coefficients)
        return workspace.gradients


def policy_loss(
    make_workspace: MakeWorkspace,
    head: HeadInputs,
    tokens: TokenInputs,
    formula: LossFormula,
    trained: Tensor,
    others: Tensor,
    needs: NeededGradients,
) -> tuple[Statistics, TokenLosses, Gradients]:
    """Statistics and losses of the tokens at the positions `trained`, then `others`, and the gradients of the former.

    One pass, 6 NVD for trained tokens and 2 NVD for others. If coefficients depend on other tokens, a first pass
    computes all log-probabilities and a second one, over the tokens whose coefficient is not 0, the gradients: at most
    8 NVD.
    """
    with torch.cuda.device_of(head.hidden):
        workspace = make_workspace(head, needs)
        if formula.needs_all_tokens:
            return _two_passes(workspace, tokens, formula, torch.cat([trained, others]))
        return _one_pass(workspace, tokens, formula, trained, others)


def _one_pass(
    workspace: Workspace, tokens: TokenInputs, formula: LossFormula, trained: Tensor, others: Tensor
) -> tuple[Statistics, TokenLosses, Gradients]:
    all_statistics: list[Statistics] = []
    all_losses: list[TokenLosses] = []
    for rows, with_gradient in ((trained, bool(workspace.needs)), (others, False)):
        for chunk in workspace.chunks(rows):
            statistics = workspace.forward(chunk, keep=with_gradient)
            losses = workspace.losses(formula, tokens, chunk, statistics)
            if with_gradient:
                workspace.backward(chunk, statistics, losses.coefficients)
            all_statistics.append(statistics)
            all_losses.append(losses)
    losses = TokenLosses.cat(all_losses) if all_losses else formula.no_losses(trained.device)
    return Statistics.cat(all_statistics, trained.device), losses, workspace.gradients


def _two_passes(
    workspace: Workspace, tokens: TokenInputs, formula: LossFormula, rows: Tensor
) -> tuple[Statistics, TokenLosses, Gradients]:
    statistics = _forward(workspace, rows)
    losses = formula.losses(tokens.at(rows), statistics.logprobs, statistics.entropy, statistics.lse)
    if workspace.needs:
        _backward(workspace, rows, losses.coefficients)
    return statistics, losses, workspace.gradients


def _forward(workspace: Workspace, rows: Tensor) -> Statistics:
    return Statistics.cat([workspace.forward(chunk, keep=False) for chunk in workspace.chunks(rows)], rows.device)


def _backward(workspace: Workspace, rows: Tensor, coefficients: Coefficients) -> None:
    """Add the gradients of those of the tokens at `rows` that have one."""
    for part in workspace.chunks(coefficients.nonzero()):
        chunk = rows[part]
        workspace.backward(chunk, workspace.forward(chunk, keep=True), coefficients.at(part))
