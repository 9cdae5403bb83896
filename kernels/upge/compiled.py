"""The two functions as custom ops, so that torch.compile sees one opaque node each, with shapes and a backward.

Eager calls do not come here: an op cannot hand its gradient buffers over (autograd.PolicyLoss does), so a compiled call
rounds its gradients before the upstream factor meets them (fp16 ones after it, for their range), into new memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .backends.workspace import Gradients, logprobs, logprobs_backward
from .coefficient import TokenStep
from .inputs import Head, Needs, Tokens
from .objective import Objective


def linear_logprobs(head: Head, needs: Needs, backend: str) -> tuple[Tensor, Tensor]:
    return torch.ops.upge.linear_logprobs(*_flat(head), list(vars(needs).values()), backend)


def policy_loss(
    head: Head, tokens: Tokens, step: TokenStep, tis_clip: float, needs: Needs, backend: str
) -> tuple[Tensor, ...]:
    """The fields of PolicyLossOutput."""
    loss, *statistics = torch.ops.upge.policy_loss(
        *_flat(head),
        [objective.key for objective in step.objectives],
        step.entropy_coef,
        step.kl_coef,
        tokens.weights,
        tokens.mask,
        tokens.objective_index,
        tokens.advantages,
        tokens.old_logprobs,
        tokens.ref_logprobs,
        tokens.rollout_logprobs,
        tokens.sequence_ids,
        float(tis_clip),
        [needs.hidden, needs.weight, needs.bias],
        backend,
    )
    return loss, *(x.detach() for x in statistics[:6])


def _flat(head: Head) -> tuple[Any, ...]:
    """A head as arguments of an op: its temperature is a number or a tensor."""
    t = head.temperature
    each, one = (t, 1.0) if isinstance(t, Tensor) else (None, t)
    return head.hidden, head.weight, head.targets, head.bias, one, each, head.softcap


def _head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    temperature: float,
    temperatures: Tensor | None,
    softcap: float | None,
) -> Head:
    return Head(hidden, weight, targets, bias, temperature if temperatures is None else temperatures, softcap)


def _kind(head: Head, backend: str, mask: Tensor | None = None):
    from .api import check_head  # api imports this module

    kind = check_head(head, backend, mask)
    if kind is None:
        raise ValueError("backend: 'reference' is plain autograd and not a compiled op; call it outside torch.compile")
    return kind


def _results(gradients: Gradients, dtypes: Sequence[torch.dtype | None], like: Tensor) -> Iterator[Tensor]:
    """An op's results are tensors: an empty one stands for no gradient."""
    for gradient, dtype in zip(gradients.finish(None, dtypes), dtypes, strict=True):
        yield torch.empty(0, dtype=dtype or like.dtype, device=like.device) if gradient is None else gradient


def _dtypes(*inputs: Tensor | None, wide: bool = False) -> list[torch.dtype | None]:
    """Of the inputs' gradients; `wide`: fp32 for fp16, which an upstream factor still has to meet."""
    known = lambda x: torch.float32 if wide and x.dtype == torch.float16 else x.dtype
    return [None if x is None else known(x) for x in inputs]


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
    head = _head(hidden, weight, targets, bias, temperature, temperatures, softcap)
    return logprobs(_kind(head, backend), head)


@_linear_logprobs.register_fake
def _(hidden, weight, targets, bias, temperature, temperatures, softcap, needs, backend):
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
    head = _head(hidden, weight, targets, bias, temperature, temperatures, softcap)
    sums = logprobs_backward(_kind(head, backend), head, Needs(*needs), g, q)
    dh, dw, db = _results(sums, _dtypes(hidden, weight, bias), hidden)
    return dh, dw, db


@_linear_logprobs_backward.register_fake
def _(hidden, weight, targets, bias, temperature, temperatures, softcap, needs, backend, g, q):
    return _fake_gradients(hidden, weight, bias, needs)


def _fake_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool], wide: bool = False
) -> tuple[Tensor, ...]:
    dtypes = _dtypes(hidden, weight, bias, wide=wide)
    return tuple(
        hidden.new_empty(x.shape if wanted and x is not None else (0,), dtype=dtype or hidden.dtype)
        for x, dtype, wanted in zip((hidden, weight, bias), dtypes, needs, strict=True)
    )


def _remember_head(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    hidden, weight, targets, bias, temperature, temperatures, softcap, needs, backend = inputs
    ctx.save_for_backward(hidden, weight, targets, bias, temperatures)
    ctx.rest = temperature, softcap, needs, backend


def _logprobs_gradients(ctx: Any, g: Tensor | None, q: Tensor | None) -> tuple[Any, ...]:
    hidden, weight, targets, bias, temperatures = ctx.saved_tensors
    temperature, softcap, needs, backend = ctx.rest
    g = hidden.new_zeros(hidden.shape[0], dtype=torch.float32) if g is None else g
    gradients = torch.ops.upge.linear_logprobs_backward(
        hidden, weight, targets, bias, temperature, temperatures, softcap, needs, backend, g, q
    )
    dh, dw, db = (x if wanted else None for x, wanted in zip(gradients, needs, strict=True))
    return dh, dw, None, db, None, None, None, None, None


_linear_logprobs.register_autograd(_logprobs_gradients, setup_context=_remember_head)


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
    """The fields of PolicyLossOutput, then dh, dW and db."""
    from .api import chunked_loss, finish_tokens  # api imports this module

    head = _head(hidden, weight, targets, bias, temperature, temperatures, softcap)
    kind = _kind(head, backend, mask)
    step = TokenStep(tuple(Objective.by_key(key) for key in objectives), entropy_coef, kl_coef)
    tokens = Tokens(
        weights, mask, objective_index, advantages, old_logprobs, ref_logprobs, rollout_logprobs, sequence_ids
    )
    out, gradients = chunked_loss(kind, head, finish_tokens(tokens, head, step, tis_clip), step, Needs(*needs))
    dh, dw, db = _results(gradients, _dtypes(hidden, weight, bias, wide=True), hidden)
    return out.loss, out.logprobs, out.entropy, out.ratio, out.coefficient, out.stable, out.evaluated, dh, dw, db


@_policy_loss.register_fake
def _(hidden, weight, targets, bias, *rest):
    needs = rest[-2]
    vector = lambda dtype: hidden.new_empty(hidden.shape[:1], dtype=dtype)
    statistics = [vector(torch.float32) for _ in range(4)] + [vector(torch.bool) for _ in range(2)]
    gradients = _fake_gradients(hidden, weight, bias, needs, wide=True)
    return (hidden.new_empty((), dtype=torch.float32), *statistics, *gradients)


def _remember_gradients(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*output[-3:])
    ctx.needs = inputs[-2]
    ctx.dtypes = _dtypes(inputs[0], inputs[1], inputs[3])


def _loss_gradients(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    dh, dw, db = (
        (gradient * upstream).to(dtype) if wanted else None
        for gradient, dtype, wanted in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs, strict=True)
    )
    return (dh, dw, None, db, *[None] * 17)


_policy_loss.register_autograd(_loss_gradients, setup_context=_remember_gradients)
