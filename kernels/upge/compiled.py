"""The two functions as custom ops: torch.compile sees one opaque node each, with shapes and a backward.

Eager calls do not use these ops. An op cannot hand over its gradient buffers, as `autograd.PolicyLoss` does. So a
compiled call writes its gradients to new memory, rounded before the upstream gradient multiplies them. Only fp16
gradients are rounded after that, because of their small range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import eager
from .backends import passes
from .backends.workspace import Gradients, MakeWorkspace
from .inputs import HeadInputs, NeededGradients, TokenArguments
from .objective import Objective
from .outputs import PolicyLossOutput
from .token_loss import LossFormula


def linear_logprobs(head: HeadInputs, backend: str) -> tuple[Tensor, Tensor]:
    """log pi(y) and entropy, (N,) float32."""
    needs = NeededGradients.of(head)
    logprobs, entropy = torch.ops.upge.linear_logprobs(
        *_head_arguments(head), [needs.hidden, needs.weight, needs.bias], backend
    )
    return logprobs, entropy


def policy_loss(
    head: HeadInputs, arguments: TokenArguments, formula: LossFormula, tis_clip: float, backend: str
) -> PolicyLossOutput:
    needs = NeededGradients.of(head)
    loss, *statistics = torch.ops.upge.policy_loss(
        *_head_arguments(head),
        [objective.key for objective in formula.objectives],
        formula.entropy_coef,
        formula.kl_coef,
        arguments.weights,
        arguments.mask,
        arguments.objective_index,
        arguments.advantages,
        arguments.old_logprobs,
        arguments.ref_logprobs,
        arguments.rollout_logprobs,
        arguments.sequence_ids,
        float(tis_clip),
        [needs.hidden, needs.weight, needs.bias],
        backend,
    )
    return PolicyLossOutput(loss, *(x.detach() for x in statistics[:6]))


def _head_arguments(head: HeadInputs) -> tuple[Any, ...]:
    """The head as arguments of an op. An op needs the temperature's two types, number and tensor, as two arguments."""
    number, tensor = 1.0, None
    if isinstance(head.temperature, Tensor):
        tensor = head.temperature
    else:
        number = head.temperature
    return head.hidden, head.weight, head.targets, head.bias, number, tensor, head.softcap


def _head_inputs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
) -> HeadInputs:
    return HeadInputs(hidden, weight, targets, bias, temperature if temperatures is None else temperatures, softcap)


def _workspace_class(head: HeadInputs, backend: str, mask: Tensor | None = None) -> MakeWorkspace:
    found = eager.check_head(head, backend, mask)
    if found is None:
        raise ValueError("backend: 'reference' is plain autograd and not a compiled op; call it outside torch.compile")
    return found


def _gradient_tensors(
    gradients: Gradients, dtypes: Sequence[torch.dtype | None], like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dh, dW and db. An op returns tensors only, so an empty one stands for a gradient that is not needed."""
    dh, dw, db = (
        torch.empty(0, dtype=dtype or like.dtype, device=like.device) if gradient is None else gradient
        for gradient, dtype in zip(gradients.finish(None, dtypes), dtypes, strict=True)
    )
    return dh, dw, db


def _gradient_dtypes(*inputs: Tensor | None, widen_fp16: bool = False) -> list[torch.dtype | None]:
    """The dtypes of the inputs' gradients. With `widen_fp16`, float32 for float16."""
    dtypes = [None if x is None else x.dtype for x in inputs]
    if widen_fp16:
        dtypes = [torch.float32 if dtype == torch.float16 else dtype for dtype in dtypes]
    return dtypes


def _fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool], widen_fp16: bool = False
) -> tuple[Tensor, ...]:
    dtypes = _gradient_dtypes(hidden, weight, bias, widen_fp16=widen_fp16)
    return tuple(
        hidden.new_empty(x.shape if needed and x is not None else (0,), dtype=dtype or hidden.dtype)
        for x, dtype, needed in zip((hidden, weight, bias), dtypes, needs, strict=True)
    )


@torch.library.custom_op("upge::linear_logprobs", mutates_args=())
def _linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    head = _head_inputs(hidden, weight, targets, bias, temperature, temperatures, softcap)
    return passes.logprobs(_workspace_class(head, backend), head)


@_linear_logprobs.register_fake
def _(hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    shape = hidden.shape[:1]
    return hidden.new_empty(shape, dtype=torch.float32), hidden.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("upge::linear_logprobs_backward", mutates_args=())
def _linear_logprobs_backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
    needs: Sequence[bool],
    backend: str,
    g: Tensor,
    q: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    head = _head_inputs(hidden, weight, targets, bias, temperature, temperatures, softcap)
    gradients = passes.logprobs_backward(_workspace_class(head, backend), head, NeededGradients(*needs), g, q)
    return _gradient_tensors(gradients, _gradient_dtypes(hidden, weight, bias), hidden)


@_linear_logprobs_backward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
    needs: Sequence[bool],
    *rest: Any,
) -> tuple[Tensor, ...]:
    return _fake_gradients(hidden, weight, bias, needs)


def _save_head(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, targets, bias, temperature, temperatures, softcap, needs, backend = inputs
    ctx.save_for_backward(hidden, weight, targets, bias, temperatures)
    ctx.settings = temperature, softcap, needs, backend


def _logprobs_backward(ctx: Any, g: Tensor | None, q: Tensor | None) -> tuple[Any, ...]:
    hidden, weight, targets, bias, temperatures = ctx.saved_tensors
    temperature, softcap, needs, backend = ctx.settings
    g = hidden.new_zeros(hidden.shape[0], dtype=torch.float32) if g is None else g
    gradients = torch.ops.upge.linear_logprobs_backward(
        hidden, weight, targets, bias, temperature, temperatures, softcap, needs, backend, g, q
    )
    dh, dw, db = (x if needed else None for x, needed in zip(gradients, needs, strict=True))
    return dh, dw, None, db, None, None, None, None, None


_linear_logprobs.register_autograd(_logprobs_backward, setup_context=_save_head)


@torch.library.custom_op("upge::policy_loss", mutates_args=())
def _policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
    objectives: Sequence[int],
    entropy_coef: float,
    kl_coef: float,
    weights: Tensor | None,
    mask: Tensor | None,
    objective_index: Tensor | None,
    advantages: Tensor | None,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    rollout_logprobs: Tensor | None,
    sequence_ids: Tensor | None,
    tis_clip: float,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of PolicyLossOutput, then dh, dW and db. `objectives` holds their keys."""
    head = _head_inputs(hidden, weight, targets, bias, temperature, temperatures, softcap)
    make_workspace = _workspace_class(head, backend, mask)
    formula = LossFormula(tuple(Objective.by_key(key) for key in objectives), entropy_coef, kl_coef)
    arguments = TokenArguments(
        weights, mask, objective_index, advantages, old_logprobs, ref_logprobs, rollout_logprobs, sequence_ids
    )
    tokens = eager.complete_tokens(arguments, head, formula, tis_clip)
    out, gradients = eager.chunked_loss(make_workspace, head, tokens, formula, NeededGradients(*needs))
    return (*out, *_gradient_tensors(gradients, _gradient_dtypes(hidden, weight, bias, widen_fp16=True), hidden))


@_policy_loss.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    needs = rest[-2]  # the last but one argument
    numbers = [hidden.new_empty(hidden.shape[:1], dtype=torch.float32) for _ in range(4)]
    flags = [hidden.new_empty(hidden.shape[:1], dtype=torch.bool) for _ in range(2)]
    gradients = _fake_gradients(hidden, weight, bias, needs, widen_fp16=True)
    return (hidden.new_empty((), dtype=torch.float32), *numbers, *flags, *gradients)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, _, bias = inputs[:4]
    ctx.save_for_backward(*output[-3:])
    ctx.needs = inputs[-2]
    ctx.dtypes = _gradient_dtypes(hidden, weight, bias)


def _loss_backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    dh, dw, db = (
        (gradient * upstream).to(dtype) if needed else None
        for gradient, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs, strict=True)
    )
    others = [None] * 17  # the op's other arguments
    return (dh, dw, None, db, *others)


_policy_loss.register_autograd(_loss_backward, setup_context=_save_gradients)
