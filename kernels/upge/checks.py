"""Checks of a call's arguments. Every message names the argument, what it got and what is allowed.

Shapes, dtypes and devices are always checked. Checks of values (target ids, NaN) would make the CPU wait for a GPU. So
they always run on a CPU, and on a GPU only inside `upge.debug()`.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .inputs import HeadInputs, TokenArguments
from .objective import Objective

HEAD_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_debug: contextvars.ContextVar[bool] = contextvars.ContextVar("upge_debug", default=False)


@contextlib.contextmanager
def debug() -> Iterator[None]:
    """In this context, calls on a GPU also check values (target ids, NaN, infinities, indices), and so wait for it."""
    token = _debug.set(True)
    try:
        yield
    finally:
        _debug.reset(token)


def reads_values(device: torch.device) -> bool:
    """Whether values on `device` may be checked."""
    return not torch.compiler.is_compiling() and (device.type == "cpu" or _debug.get())


def check_is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must be a tensor; got {type(value).__name__}")


def check_head(head: HeadInputs) -> None:
    hidden, weight = head.hidden, head.weight
    _check_matrix("hidden", hidden, "(N, D): flatten batch and sequence into tokens")
    _check_matrix("weight", weight, "(V, D), as torch.nn.Linear stores it")
    if type(weight).__name__ == "DTensor" or type(hidden).__name__ == "DTensor":
        raise TypeError(
            "weight: must not be a sharded DTensor; call the head as a module, upge.FusedLMHead, so that it is gathered"
        )
    if hidden.dtype != weight.dtype:
        raise TypeError(
            f"weight: must have the dtype of hidden; got {_name(weight.dtype)} with hidden {_name(hidden.dtype)}. "
            "Cast one of them, or call under torch.autocast"
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"weight: must be (V, {hidden.shape[1]}) to match hidden {tuple(hidden.shape)}; got {tuple(weight.shape)}"
        )
    if weight.shape[0] == 0 or weight.shape[1] == 0:
        raise ValueError(f"weight: V and D must be at least 1; got {tuple(weight.shape)}")
    if weight.device != hidden.device:
        raise ValueError(f"weight: must be on the device of hidden, {hidden.device}; got {weight.device}")
    check_vector("targets", head.targets, head, (torch.int64, torch.int32))
    check_vector("bias", head.bias, head, HEAD_DTYPES, length=head.vocabulary_size, symbol="V")
    if isinstance(head.temperature, Tensor):
        check_vector("temperature", head.temperature, head, (torch.float32,))
    elif not _is_positive(head.temperature):
        raise ValueError(f"temperature: must be a positive float or a float32 tensor (N,); got {head.temperature!r}")
    if head.softcap is not None and not _is_positive(head.softcap):
        raise ValueError(f"softcap: must be a positive float or None; got {head.softcap!r}")


def check_objectives(
    objectives: Objective | Sequence[Objective], objective_index: Tensor | None
) -> tuple[Objective, ...]:
    """The objectives as a tuple."""
    if isinstance(objectives, Objective):
        return (objectives,)
    if not isinstance(objectives, (list, tuple)) or not objectives:
        raise TypeError(_objectives_message(objectives))
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(_objectives_message(objective))
    if len(objectives) > 1 and objective_index is None:
        raise ValueError(
            f"objective_index: {len(objectives)} objectives need the index of the one that each token follows, "
            "(N,) integers; got None"
        )
    return tuple(objectives)


def _objectives_message(got: object) -> str:
    hint = "; call the preset, e.g. upge.GRPO()" if callable(got) else ""
    return f"objectives: must be an upge.Objective or a non-empty list of them; got {got!r}{hint}"


def check_finite(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value)):
        raise ValueError(f"{name}: must be a finite float; got {value!r}")


def check_tokens(
    tokens: TokenArguments, head: HeadInputs, objectives: Sequence[Objective], uses_kl: bool, tis_clip: float
) -> None:
    for name in ("weights", "advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs"):
        check_vector(name, getattr(tokens, name), head, (torch.float32,))
    check_vector("mask", tokens.mask, head, (torch.bool,))
    check_vector("objective_index", tokens.objective_index, head, INTEGER_DTYPES)
    check_vector("sequence_ids", tokens.sequence_ids, head, INTEGER_DTYPES)
    for objective in objectives:
        name = objective.name
        if objective.needs_advantages and tokens.advantages is None:
            raise ValueError(f"advantages: objective {name} needs the advantage of each token, (N,); got None")
        if objective.needs_old_logprobs and tokens.old_logprobs is None:
            raise ValueError(
                f"old_logprobs: objective {name} needs the log-probabilities of the policy that sampled the tokens, "
                "(N,); got None"
            )
        if objective.needs_sequence_ids and tokens.sequence_ids is None:
            raise ValueError(f"sequence_ids: objective {name} needs the sequence id of each token, (N,); got None")
    if uses_kl and tokens.ref_logprobs is None:
        raise ValueError(
            "ref_logprobs: kl_coef != 0 needs the log-probabilities of the frozen reference model, (N,); got None"
        )
    if tokens.rollout_logprobs is not None and tokens.old_logprobs is None:
        raise ValueError(
            "old_logprobs: the truncated importance ratio min(exp(old_logprobs - rollout_logprobs), tis_clip) needs "
            "both; got only rollout_logprobs"
        )
    if not (isinstance(tis_clip, (int, float)) and tis_clip > 0):
        raise ValueError(f"tis_clip: must be a positive float; got {tis_clip!r}")


def check_head_values(head: HeadInputs, mask: Tensor | None) -> None:
    """Check the values of counted tokens. Reads the device."""
    counted = slice(None) if mask is None else mask
    targets = head.targets[counted]
    bad = targets[(targets < 0) | (targets >= head.vocabulary_size)]
    if bad.numel():
        hint = "" if mask is not None else "; leave such tokens out, or use fused_policy_loss with mask="
        raise ValueError(
            f"targets: ids must be in [0, {head.vocabulary_size}) where the token counts; got {int(bad[0])}{hint}"
        )
    not_finite = ~torch.isfinite(head.hidden).all(dim=1)
    if mask is not None:
        not_finite &= mask
    if not_finite.any():
        row = int(not_finite.nonzero()[0])
        raise ValueError(f"hidden: must be finite where the token counts; row {row} holds NaN or inf")
    if isinstance(head.temperature, Tensor):
        wrong = head.temperature[counted]
        wrong = wrong[~((wrong > 0) & torch.isfinite(wrong))]
        if wrong.numel():
            raise ValueError(f"temperature: must be positive and finite where the token counts; got {float(wrong[0])}")


def check_token_values(
    tokens: TokenArguments, head: HeadInputs, objectives: Sequence[Objective], uses_kl: bool
) -> None:
    """Check the values of the per-token arguments on the tokens where they are read. Reads the device."""
    counted = torch.ones(head.token_count, dtype=torch.bool, device=head.hidden.device)
    if tokens.mask is not None:
        counted = tokens.mask
    index = tokens.objective_index
    if index is not None:
        bad = index[counted & ((index < 0) | (index >= len(objectives)))]
        if bad.numel():
            raise ValueError(
                f"objective_index: must be in [0, {len(objectives)}) where the token counts; got {int(bad[0])}"
            )
    reads_advantages, reads_old = torch.zeros_like(counted), torch.zeros_like(counted)
    for number, objective in enumerate(objectives):
        follows = counted if index is None else counted & (index == number)
        if objective.needs_advantages:
            reads_advantages |= follows
        if objective.needs_old_logprobs:
            reads_old |= follows
    _check_finite_where("weights", tokens.weights, counted)
    _check_finite_where("rollout_logprobs", tokens.rollout_logprobs, counted)
    if uses_kl:
        _check_finite_where("ref_logprobs", tokens.ref_logprobs, counted)
    _check_finite_where("advantages", tokens.advantages, reads_advantages)
    _check_finite_where("old_logprobs", tokens.old_logprobs, reads_old if tokens.rollout_logprobs is None else counted)


def check_vector(
    name: str,
    value: Tensor | None,
    head: HeadInputs,
    dtypes: Sequence[torch.dtype],
    length: int | None = None,
    symbol: str = "N",
) -> None:
    """Check a vector of one entry per token, or of `length`, which messages call `symbol`. None passes."""
    if value is None:
        return
    length = head.token_count if length is None else length
    allowed = " or ".join(_name(dtype) for dtype in dtypes)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must be a tensor ({symbol},) of {allowed}; got {type(value).__name__}")
    if value.shape != (length,):
        raise ValueError(f"{name}: must have shape ({symbol},) = ({length},); got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        was_cast = value.dtype in HEAD_DTYPES and torch.float32 in dtypes
        hint = ". A MixedPrecisionPolicy of FSDP2 casts it unless cast_forward_inputs=False" if was_cast else ""
        raise TypeError(f"{name}: must be {allowed}; got {_name(value.dtype)}{hint}")
    if value.device != head.hidden.device:
        raise ValueError(f"{name}: must be on the device of hidden, {head.hidden.device}; got {value.device}")


def _check_matrix(name: str, value: Tensor, shape: str) -> None:
    if value.dim() != 2:
        raise ValueError(f"{name}: must have shape {shape}; got {tuple(value.shape)}")
    if value.dtype not in HEAD_DTYPES:
        raise TypeError(f"{name}: must be {', '.join(_name(d) for d in HEAD_DTYPES)}; got {_name(value.dtype)}")


def _check_finite_where(name: str, value: Tensor | None, where: Tensor) -> None:
    if value is None:
        return
    wrong = where & ~torch.isfinite(value)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: must not be NaN or infinite where it is read; row {row} is {float(value[row])}")


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < math.inf


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
