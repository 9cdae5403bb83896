"""The chunked backends as autograd functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import passes
from .backends.workspace import Gradients, MakeWorkspace
from .inputs import HeadInputs, NeededGradients
from .token_loss import Coefficients


class PolicyLoss(torch.autograd.Function):
    """A loss whose gradients were computed together with it. The backward multiplies them by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: Tensor, gradients: Gradients
    ) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = _dtypes(hidden, weight, bias)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives("fused_policy_loss")
        if ctx.gradients is None:
            raise RuntimeError("fused_policy_loss: backward ran twice; pass retain_graph=True to the first one")
        gradients: Gradients = ctx.gradients
        # Unless the graph is kept, dW is scaled in place and handed over: the weight's .grad is the buffer in which it
        # was summed.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        if not keep:
            ctx.gradients = None
        return (*gradients.finish(upstream, ctx.dtypes, keep), None, None)


class LinearLogprobs(torch.autograd.Function):
    """Log-probabilities, entropies, log-sum-exps and top1. The backward computes the logits again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: HeadInputs,
        rows: Tensor,
        make_workspace: MakeWorkspace,
        needs: NeededGradients,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        temperatures = head.temperature if isinstance(head.temperature, Tensor) else None
        ctx.save_for_backward(hidden, weight, bias, head.targets, temperatures, rows)
        ctx.temperature = head.temperature if temperatures is None else None
        ctx.softcap, ctx.shard, ctx.make_workspace, ctx.needs = head.softcap, head.shard, make_workspace, needs
        ctx.set_materialize_grads(False)
        logprobs, entropy, lse, top1 = passes.statistics(make_workspace, head, rows).spread(rows, head.token_count)
        ctx.mark_non_differentiable(top1)
        return logprobs, entropy, lse, top1

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, q: Tensor | None, k: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives("linear_logprobs")
        hidden, weight, bias, targets, temperatures, rows = ctx.saved_tensors
        temperature = ctx.temperature if temperatures is None else temperatures
        head = HeadInputs(hidden, weight, targets, bias, temperature, ctx.softcap, ctx.shard)
        if g is None:
            g = torch.zeros(head.token_count, dtype=torch.float32, device=hidden.device)
        gradients = passes.gradients(ctx.make_workspace, head, ctx.needs, rows, Coefficients(g, q, k).at(rows))
        return (*gradients.finish(None, _dtypes(hidden, weight, bias)), None, None, None, None)


def _dtypes(*inputs: Tensor | None) -> list[torch.dtype | None]:
    return [None if x is None else x.dtype for x in inputs]


def _refuse_second_derivatives(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: has no second derivatives (create_graph=True); use backend='reference' for them")
