"""The two functions as custom ops: torch.compile sees one opaque node each, with shapes and a backward.

Eager calls do not use these ops. An op cannot hand over its gradient buffers, as `autograd.PolicyLoss` does. So a
compiled call writes its gradients to new memory, rounded before the upstream gradient multiplies them. Only fp16
gradients are rounded after that, because of their small range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from . import eager
from .backends import passes
from .backends.workspace import Columns, Gradients, MakeWorkspace
from .importance import ImportanceRatio
from .inputs import HeadInputs, NeededGradients, TokenArguments
from .objective import Objective
from .outputs import PolicyLossOutput
from .token_loss import Coefficients, LossFormula

# The tensors of a call, in the order of an op's arguments.
TOKEN_FIELDS = [item.name for item in fields(TokenArguments) if item.name != "columns"]


def linear_logprobs(head: HeadInputs, counted: Tensor, backend: str, differentiable: tuple[bool, bool]) -> Columns:
    """log pi(y), entropy, log-sum-exp (float32) and top1 (bool), each (N,).

    differentiable: whether entropy and log-sum-exp are used; the gradient of an unused one is not computed.
    """
    needs = NeededGradients.of(head)
    logprobs, entropy, lse, top1 = torch.ops.upge.linear_logprobs(
        *_head_arguments(head), counted, differentiable, [needs.hidden, needs.weight, needs.bias], backend
    )
    return logprobs, entropy, lse, top1


def policy_loss(head: HeadInputs, arguments: TokenArguments, formula: LossFormula, backend: str) -> PolicyLossOutput:
    needs = NeededGradients.of(head)
    ratio = formula.importance
    loss, *columns = torch.ops.upge.policy_loss(
        *_head_arguments(head),
        [getattr(arguments, name) for name in TOKEN_FIELDS],
        [objective.key for objective in formula.objectives],
        ratio.level,
        ratio.mode,
        float(ratio.high),
        None if ratio.low is None else float(ratio.low),
        formula.kl,
        float(formula.max_log_ratio),
        formula.evaluate,
        [needs.hidden, needs.weight, needs.bias],
        backend,
    )
    return PolicyLossOutput(loss, *(x.detach() for x in columns[: len(PolicyLossOutput._fields) - 1]))


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


def _workspace_class(head: HeadInputs, counted: Tensor, backend: str) -> MakeWorkspace:
    found = eager.workspace_class(head, counted, backend)
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


def _fake_columns(hidden: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(hidden.new_empty(hidden.shape[:1], dtype=dtype) for dtype in dtypes)


@torch.library.custom_op("upge::linear_logprobs", mutates_args=())
def _linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
    counted: Tensor,
    differentiable: Sequence[bool],
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    head = _head_inputs(hidden, weight, targets, bias, temperature, temperatures, softcap)
    rows = counted.nonzero().squeeze(1)
    found = passes.statistics(_workspace_class(head, counted, backend), head, rows)
    return found.spread(rows, head.token_count)


@_linear_logprobs.register_fake
def _(hidden: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _fake_columns(hidden, torch.float32, torch.float32, torch.float32, torch.bool)


@torch.library.custom_op("upge::linear_logprobs_backward", mutates_args=())
def _linear_logprobs_backward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
    counted: Tensor,
    needs: Sequence[bool],
    backend: str,
    g: Tensor,
    q: Tensor | None,
    k: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    head = _head_inputs(hidden, weight, targets, bias, temperature, temperatures, softcap)
    make_workspace, rows = _workspace_class(head, counted, backend), counted.nonzero().squeeze(1)
    gradients = passes.gradients(make_workspace, head, NeededGradients(*needs), rows, Coefficients(g, q, k).at(rows))
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
    counted: Tensor,
    needs: Sequence[bool],
    *rest: Any,
) -> tuple[Tensor, ...]:
    return _fake_gradients(hidden, weight, bias, needs)


def _save_head(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, targets, bias, temperature, temperatures, softcap, counted, differentiable, needs, backend = inputs
    ctx.save_for_backward(hidden, weight, targets, bias, temperatures, counted)
    ctx.settings = temperature, softcap, differentiable, needs, backend


def _logprobs_backward(ctx: Any, g: Tensor | None, q: Tensor | None, k: Tensor | None, _: Any) -> tuple[Any, ...]:
    hidden, weight, targets, bias, temperatures, counted = ctx.saved_tensors
    temperature, softcap, (entropy_used, lse_used), needs, backend = ctx.settings
    q, k = q if entropy_used else None, k if lse_used else None
    g = hidden.new_zeros(hidden.shape[0], dtype=torch.float32) if g is None else g
    gradients = torch.ops.upge.linear_logprobs_backward(
        hidden, weight, targets, bias, temperature, temperatures, softcap, counted, needs, backend, g, q, k
    )
    dh, dw, db = (x if needed else None for x, needed in zip(gradients, needs, strict=True))
    return dh, dw, None, db, *[None] * 7


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
    tokens: Sequence[Tensor | None],
    objectives: Sequence[int],
    tis: str,
    tis_mode: str,
    tis_clip: float,
    tis_min: float | None,
    kl: str,
    max_log_ratio: float,
    evaluate: str,
    needs: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of PolicyLossOutput, then dh, dW and db.

    tokens: the fields of TokenArguments named in TOKEN_FIELDS. objectives: their keys.
    """
    head = _head_inputs(hidden, weight, targets, bias, temperature, temperatures, softcap)
    given: dict[str, Any] = dict(zip(TOKEN_FIELDS, tokens, strict=True))
    arguments = TokenArguments(**given)
    assert arguments.mask is not None
    make_workspace = _workspace_class(head, arguments.mask, backend)
    formula = LossFormula(
        tuple(Objective.by_key(key) for key in objectives),
        ImportanceRatio(tis, tis_mode, tis_clip, tis_min),
        kl,
        max_log_ratio,
        evaluate,
    )
    complete = eager.complete_tokens(arguments, head, formula)
    out, gradients = eager.chunked_loss(
        make_workspace,
        head,
        complete,
        formula,
        replace(NeededGradients(*needs), entropy=complete.entropy_coef is not None),
    )
    return (*out, *_gradient_tensors(gradients, _gradient_dtypes(hidden, weight, bias, widen_fp16=True), hidden))


@_policy_loss.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    needs = rest[-2]  # the last but one argument
    columns = _fake_columns(hidden, *[torch.float32] * 5, *[torch.bool] * 3)
    gradients = _fake_gradients(hidden, weight, bias, needs, widen_fp16=True)
    return (hidden.new_empty((), dtype=torch.float32), *columns, *gradients)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, _, bias = inputs[:4]
    ctx.save_for_backward(*output[-3:])
    ctx.needs, ctx.dtypes = inputs[-2], _gradient_dtypes(hidden, weight, bias)
    ctx.argument_count = len(inputs)


def _loss_backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    dh, dw, db = (
        (gradient * upstream).to(dtype) if needed else None
        for gradient, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs, strict=True)
    )
    others = [None] * (ctx.argument_count - 4)
    return (dh, dw, None, db, *others)


_policy_loss.register_autograd(_loss_backward, setup_context=_save_gradients)
