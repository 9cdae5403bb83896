"""The chunked backends as autograd functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backends.workspace import Gradients, Workspace, logprobs, logprobs_backward
from .inputs import Head, Needs


class PolicyLoss(torch.autograd.Function):
    """A scalar loss whose gradients were computed with it: the backward only scales them by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        compute: Callable[[], tuple[Tensor, Gradients]],
    ) -> Tensor:
        loss, ctx.gradients = compute()
        ctx.dtypes = [x.dtype if x is not None else None for x in (hidden, weight, bias)]
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives("fused_policy_loss")
        if ctx.gradients is None:
            raise RuntimeError("fused_policy_loss: backward ran twice; pass retain_graph=True to the first one")
        gradients: Gradients = ctx.gradients
        # Unless the graph is kept, dW is scaled in place and handed over: the weight's .grad is the very buffer that it
        # was summed in.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        if not keep:
            ctx.gradients = None
        return (*gradients.finish(upstream, ctx.dtypes, keep), None)


class LinearLogprobs(torch.autograd.Function):
    """Log-probabilities and entropies; the backward makes the logits again, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, kind: type[Workspace], needs: Needs
    ) -> tuple[Tensor, Tensor]:
        temperature = head.temperature if isinstance(head.temperature, Tensor) else None
        ctx.save_for_backward(hidden, weight, bias, head.targets, temperature)
        ctx.scalars = (head.temperature if temperature is None else None, head.softcap)
        ctx.kind, ctx.needs = kind, needs
        ctx.set_materialize_grads(False)
        return logprobs(kind, head)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, q: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivatives("linear_logprobs")
        hidden, weight, bias, targets, temperature = ctx.saved_tensors
        scalar, softcap = ctx.scalars
        head = Head(hidden, weight, targets, bias, scalar if temperature is None else temperature, softcap)
        if g is None:
            g = torch.zeros(head.tokens, dtype=torch.float32, device=hidden.device)
        sums: Gradients = logprobs_backward(ctx.kind, head, ctx.needs, g, q)
        dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return (*sums.finish(None, dtypes), None, None, None)


def _refuse_second_derivatives(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: has no second derivatives (create_graph=True); use backend='reference' for them")
