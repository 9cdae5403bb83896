"""Validation of a call's arguments: every message names the argument, what came and what is allowed.

Shapes, dtypes and devices are always checked. Checks that read values (target ids, NaN) would make a GPU wait, so there
they run under `upge.debug()` only; on CPU they always run.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .inputs import Head, Tokens
from .objective import Objective

HEAD_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_debug: contextvars.ContextVar[bool] = contextvars.ContextVar("upge_debug", default=False)


@contextlib.contextmanager
def debug() -> Iterator[None]:
    """Within this context calls also check values on the GPU (target ids, NaN, -inf, indices), and so wait for it."""
    token = _debug.set(True)
    try:
        yield
    finally:
        _debug.reset(token)


def reads_values(device: torch.device) -> bool:
    return not torch.compiler.is_compiling() and (device.type == "cpu" or _debug.get())


def head(head: Head) -> None:
    hidden, weight = head.hidden, head.weight
    _matrix("hidden", hidden, "(N, D): flatten batch and sequence into tokens")
    _matrix("weight", weight, "(V, D), as torch.nn.Linear stores it")
    if type(weight).__name__ == "DTensor" or type(hidden).__name__ == "DTensor":
        raise TypeError(
            "weight: got a sharded DTensor; call the head as a module, upge.FusedLMHead, so that it is gathered first"
        )
    if hidden.dtype != weight.dtype:
        raise TypeError(
            f"weight: must have the dtype of hidden; got {_name(weight.dtype)} with hidden {_name(hidden.dtype)}. "
            "Cast one of them, or call under torch.autocast"
        )
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"weight: must be (V, {hidden.shape[1]}) to go with hidden {tuple(hidden.shape)}; got {tuple(weight.shape)}"
        )
    if weight.shape[0] == 0 or weight.shape[1] == 0:
        raise ValueError(f"weight: V and D must be at least 1; got {tuple(weight.shape)}")
    if weight.device != hidden.device:
        raise ValueError(f"weight: must be on the device of hidden, {hidden.device}; got {weight.device}")
    vector("targets", head.targets, head, (torch.int64, torch.int32))
    if head.bias is not None:
        vector("bias", head.bias, head, HEAD_DTYPES, length=head.vocabulary, symbol="V")
    if isinstance(head.temperature, Tensor):
        vector("temperature", head.temperature, head, (torch.float32,))
    elif not (isinstance(head.temperature, (int, float)) and 0 < head.temperature < math.inf):
        raise ValueError(f"temperature: must be a positive float or a float32 tensor (N,); got {head.temperature!r}")
    if head.softcap is not None and not (isinstance(head.softcap, (int, float)) and 0 < head.softcap < math.inf):
        raise ValueError(f"softcap: must be a positive float or None; got {head.softcap!r}")


def tokens(tokens: Tokens, head: Head, objectives: Sequence[Objective], regularised: bool, tis_clip: float) -> None:
    floats = (torch.float32,)
    for name in ("weights", "advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs"):
        vector(name, getattr(tokens, name), head, floats)
    vector("mask", tokens.mask, head, (torch.bool,))
    vector("objective_index", tokens.objective_index, head, INTEGERS)
    vector("sequence_ids", tokens.sequence_ids, head, INTEGERS)
    for objective in objectives:
        for needed, name, why in (
            (objective.needs_advantages, "advantages", "an advantage of each token"),
            (
                objective.needs_old_logprobs,
                "old_logprobs",
                "the log-probabilities of the policy that sampled the tokens",
            ),
            (objective.needs_sequence_ids, "sequence_ids", "the sequence that each token belongs to"),
        ):
            if needed and getattr(tokens, name) is None:
                raise ValueError(f"{name}: objective {objective.name} needs {why}, (N,); got None")
    if regularised and tokens.ref_logprobs is None:
        raise ValueError(
            "ref_logprobs: kl_coef != 0 needs the log-probabilities of the frozen reference model, (N,); got None"
        )
    if tokens.rollout_logprobs is not None and tokens.old_logprobs is None:
        raise ValueError(
            "old_logprobs: rollout_logprobs asks for the truncated importance ratio min(exp(old_logprobs - "
            "rollout_logprobs), tis_clip), which needs both; got rollout_logprobs alone"
        )
    if not (isinstance(tis_clip, (int, float)) and tis_clip > 0):
        raise ValueError(f"tis_clip: must be a positive float; got {tis_clip!r}")


def objectives(given: Objective | Sequence[Objective], objective_index: Tensor | None) -> tuple[Objective, ...]:
    found = (given,) if isinstance(given, Objective) else tuple(given) if isinstance(given, (list, tuple)) else ()
    wrong = [o for o in found if not isinstance(o, Objective)]
    if not found or wrong:
        came = wrong[0] if wrong else given
        hint = "; call the preset, e.g. upge.GRPO()" if callable(came) else ""
        raise TypeError(f"objectives: must be an upge.Objective or a non-empty list of them; got {came!r}{hint}")
    if len(found) > 1 and objective_index is None:
        raise ValueError(
            f"objective_index: {len(found)} objectives need to know which token follows which, (N,) integers; got None"
        )
    return found


def coefficient(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value)):
        raise ValueError(f"{name}: must be a finite float; got {value!r}")


def head_values(head: Head, mask: Tensor | None) -> None:
    """Values of the head's inputs on counted rows; reads the device."""
    counted = slice(None) if mask is None else mask
    targets = head.targets[counted]
    bad = targets[(targets < 0) | (targets >= head.vocabulary)]
    if bad.numel():
        hint = "" if mask is not None else "; leave such tokens out" + ", or use fused_policy_loss with mask="
        raise ValueError(
            f"targets: ids must be in [0, {head.vocabulary}) where the token counts; got {int(bad[0])}{hint}"
        )
    broken = ~torch.isfinite(head.hidden).all(dim=1)
    if mask is not None:
        broken &= mask
    if broken.any():
        row = int(broken.nonzero()[0])
        raise ValueError(f"hidden: must be finite where the token counts; row {row} holds NaN or inf")
    if isinstance(head.temperature, Tensor):
        wrong = head.temperature[counted]
        wrong = wrong[~((wrong > 0) & torch.isfinite(wrong))]
        if wrong.numel():
            raise ValueError(f"temperature: must be positive and finite where the token counts; got {float(wrong[0])}")


def token_values(tokens: Tokens, head: Head, objectives: Sequence[Objective], kl: bool) -> None:
    """Values of the per-token inputs where something reads them; reads the device."""
    everywhere = torch.ones(head.tokens, dtype=torch.bool, device=head.hidden.device)
    counted = everywhere if tokens.mask is None else tokens.mask
    index = tokens.objective_index
    if index is not None:
        bad = index[counted & ((index < 0) | (index >= len(objectives)))]
        if bad.numel():
            raise ValueError(
                f"objective_index: must be in [0, {len(objectives)}) where the token counts; got {int(bad[0])}"
            )
    nobody = torch.zeros_like(counted)
    readers = {"weights": counted, "rollout_logprobs": counted, "ref_logprobs": counted if kl else nobody}
    for name, attribute in (("advantages", "needs_advantages"), ("old_logprobs", "needs_old_logprobs")):
        reads = nobody.clone()
        for number, objective in enumerate(objectives):
            if getattr(objective, attribute):
                reads |= counted if index is None else counted & (index == number)
        readers[name] = counted if name == "old_logprobs" and tokens.rollout_logprobs is not None else reads
    for name, reads in readers.items():
        value = getattr(tokens, name)
        if value is not None and not bool(torch.isfinite(value[reads]).all()):
            row = int((reads & ~torch.isfinite(value)).nonzero()[0])
            raise ValueError(f"{name}: must not be NaN or infinite where it is read; row {row} is {float(value[row])}")


def vector(
    name: str,
    value: Tensor | None,
    head: Head,
    dtypes: Sequence[torch.dtype],
    length: int | None = None,
    symbol: str = "N",
) -> None:
    if value is None:
        return
    length = head.tokens if length is None else length
    allowed = " or ".join(_name(d) for d in dtypes)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must be a tensor ({symbol},) of {allowed}; got {type(value).__name__}")
    if value.shape != (length,):
        raise ValueError(f"{name}: must have shape ({symbol},) = ({length},); got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        halved = value.dtype in HEAD_DTYPES and torch.float32 in dtypes
        hint = ". A MixedPrecisionPolicy of FSDP2 casts it unless cast_forward_inputs=False" if halved else ""
        raise TypeError(f"{name}: must be {allowed}; got {_name(value.dtype)}{hint}")
    if value.device != head.hidden.device:
        raise ValueError(f"{name}: must be on the device of hidden, {head.hidden.device}; got {value.device}")


def _matrix(name: str, value: Tensor, shape: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must be a tensor {shape}; got {type(value).__name__}")
    if value.dim() != 2:
        raise ValueError(f"{name}: must have shape {shape}; got {tuple(value.shape)}")
    if value.dtype not in HEAD_DTYPES:
        raise TypeError(f"{name}: must be {', '.join(_name(d) for d in HEAD_DTYPES)}; got {_name(value.dtype)}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
