"""Checks of a call's arguments: types, shapes, dtypes, devices and choices. Values are checked in `value_checks.py`.

Every message names the argument, what it got and what is allowed. In messages, (...) is the shape of targets.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .importance import LEVELS, MODES
from .inputs import TokenArguments, TokenInputs
from .objective import Objective
from .regularizers import KL_KINDS
from .token_loss import LossFormula

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
VALUE_DTYPES = (*FLOAT_DTYPES, torch.float64)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
EVALUATE = ("needed", "all")
SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30  # a scale and its inverse are far from the limits of float32
SCALE = "a positive float from 1e-30 to 1e30"
LARGEST = torch.finfo(torch.float32).max


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    for name, value in (("hidden", hidden), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: must be a tensor; got {type(value).__name__}")
        _check_is_plain(name, value)
    if weight.dim() != 2:
        raise ValueError(f"weight: must have shape (V, D), as torch.nn.Linear stores it; got {tuple(weight.shape)}")
    if hidden.dim() == 0:
        raise ValueError("hidden: must have shape (..., D), where targets have (...); got ()")
    for name, value in (("hidden", hidden), ("weight", weight)):
        if value.dtype not in FLOAT_DTYPES:
            raise TypeError(f"{name}: must be {_names(FLOAT_DTYPES)}; got {_name(value.dtype)}")
    if hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"weight: must be (V, {hidden.shape[-1]}) to match hidden {tuple(hidden.shape)}; got {tuple(weight.shape)}"
        )
    if weight.shape[0] == 0 or weight.shape[1] == 0:
        raise ValueError(f"weight: V and D must be at least 1; got {tuple(weight.shape)}")
    if hidden.is_meta:
        raise ValueError("hidden: must be on a device that holds data; got meta")
    _check_device("weight", weight, hidden)
    check_column("targets", targets, hidden, (torch.int64, torch.int32))
    if bias is not None:
        _check_tensor("bias", bias, "(V,)", (weight.shape[0],), FLOAT_DTYPES, hidden)


def check_column(name: str, value: Tensor | None, hidden: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Check a tensor of one entry per token. None passes."""
    if value is not None:
        _check_tensor(name, value, "(...)", tuple(hidden.shape[:-1]), dtypes, hidden)


def check_scalars(temperature: float | Tensor, softcap: float | None, logit_scale: float, ignore_index: int) -> None:
    if isinstance(temperature, Tensor):
        if temperature.requires_grad and torch.is_grad_enabled():
            raise ValueError("temperature: must be a constant; got a tensor that requires a gradient: detach it")
    elif not _is_scale(temperature):
        raise ValueError(f"temperature: must be {SCALE} or a tensor (...); got {temperature!r}")
    if softcap is not None and not _is_scale(softcap):
        raise ValueError(f"softcap: must be {SCALE} or None; got {softcap!r}")
    if not _is_scale(logit_scale):
        raise ValueError(f"logit_scale: must be {SCALE}; got {logit_scale!r}")
    for name, value in (("temperature", temperature), ("softcap", softcap)):
        if isinstance(value, (int, float)) and not _is_scale(value / logit_scale):
            raise ValueError(f"logit_scale: {name} / logit_scale must be {SCALE}; got {value!r} / {logit_scale!r}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: must be an int; got {ignore_index!r}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: must fit int64; got {ignore_index}")


def check_objectives(objectives: Objective | Sequence[Objective]) -> tuple[Objective, ...]:
    """The objectives as a tuple."""
    if isinstance(objectives, Objective):
        return (objectives,)
    if not isinstance(objectives, (list, tuple)) or not objectives:
        raise TypeError(_objectives_message(objectives))
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise TypeError(_objectives_message(objective))
    return tuple(objectives)


def _objectives_message(got: object) -> str:
    hint = "; call the preset, e.g. upge.GRPO()" if callable(got) else ""
    return f"objectives: must be an upge.Objective or a non-empty list of them; got {got!r}{hint}"


def check_unrounded(name: str, value: object) -> None:
    """Refuse a 16-bit tensor per token where a wrapper of a module may have cast it.

    bfloat16 would spoil it: the ratio of log-probabilities near 10 would be off by 6%.
    """
    if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        raise TypeError(
            f"{name}: must be float32; got {_name(value.dtype)}. A MixedPrecisionPolicy of FSDP2 casts it unless "
            "cast_forward_inputs=False"
        )


def check_group(group: object) -> None:
    """None, or a process group of torch.distributed."""
    if group is None:
        return
    distributed = torch.distributed.is_available()
    if not distributed or not isinstance(group, torch.distributed.ProcessGroup):
        raise TypeError(
            "group: must be a process group, as of torch.distributed.new_group() or DeviceMesh.get_group(); "
            f"got {type(group).__name__}"
        )


def check_formula(formula: LossFormula) -> None:
    """The settings of a call that are not tensors."""
    ratio = formula.importance
    _check_choice("tis", ratio.level, LEVELS)
    _check_choice("tis_mode", ratio.mode, MODES)
    if not (_is_number(ratio.high) and 0 < ratio.high <= LARGEST):
        raise ValueError(f"tis_clip: must be a positive, finite float; got {ratio.high!r}")
    if ratio.low is not None and not (_is_number(ratio.low) and 0 <= ratio.low <= ratio.high):
        raise ValueError(f"tis_min: must be None or in [0, tis_clip] = [0, {ratio.high}]; got {ratio.low!r}")
    _check_choice("kl", formula.kl, KL_KINDS)
    _check_choice("evaluate", formula.evaluate, EVALUATE)
    # e^80 is near the largest float32.
    if not (_is_number(formula.max_log_ratio) and 0 < formula.max_log_ratio <= 80):
        raise ValueError(f"max_log_ratio: must be a float in (0, 80]; got {formula.max_log_ratio!r}")


def check_coefficient(name: str, value: float | Tensor, hidden: Tensor) -> None:
    """A finite number, or one per token."""
    if isinstance(value, Tensor):
        check_column(name, value, hidden, VALUE_DTYPES)
    elif not (_is_number(value) and -LARGEST <= value <= LARGEST):
        raise ValueError(f"{name}: must be a finite float (of float32's range) or a tensor (...); got {value!r}")


def check_tokens(tokens: TokenArguments, hidden: Tensor) -> None:
    for name in ("weights", "advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs"):
        check_column(name, getattr(tokens, name), hidden, VALUE_DTYPES)
    check_column("objective_index", tokens.objective_index, hidden, INTEGER_DTYPES)
    check_column("sequence_ids", tokens.sequence_ids, hidden, INTEGER_DTYPES)
    if not isinstance(tokens.columns, Mapping):
        raise TypeError(f"columns: must be a dict from names to tensors (...); got {type(tokens.columns).__name__}")
    taken = {"entropy", *TokenInputs.__dataclass_fields__}
    for name, column in tokens.columns.items():
        is_name = isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)
        if not is_name or name.startswith("_"):
            raise ValueError(
                f"columns: names must be identifiers without a leading underscore, read as batch.NAME; got {name!r}"
            )
        if name in taken:
            raise ValueError(f"columns: {name!r} is the name of an argument; choose another")
        check_column(f"columns[{name!r}]", column, hidden, (*VALUE_DTYPES, *INTEGER_DTYPES, torch.bool))


def check_needs(tokens: TokenArguments, formula: LossFormula) -> None:
    """Whether the call was given what its objectives and options read."""
    if len(formula.objectives) > 1 and tokens.objective_index is None:
        raise ValueError(
            f"objective_index: {len(formula.objectives)} objectives need the index of the one that each token follows, "
            "(...) integers; got None"
        )
    for objective in formula.objectives:
        name = objective.name
        if objective.needs_advantages and tokens.advantages is None:
            raise ValueError(f"advantages: objective {name} needs the advantage of each token, (...); got None")
        if objective.needs_sequence_ids and tokens.sequence_ids is None:
            raise ValueError(f"sequence_ids: objective {name} needs the sequence id of each token, (...); got None")
    if tokens.kl_coef is not None and tokens.ref_logprobs is None:
        raise ValueError(
            "ref_logprobs: kl_coef != 0 needs the log-probabilities of the frozen reference model, (...); got None"
        )
    if tokens.rollout_logprobs is not None:
        if tokens.old_logprobs is None:
            raise ValueError(
                "old_logprobs: the truncated importance ratio exp(old_logprobs - rollout_logprobs) needs both; "
                "got only rollout_logprobs"
            )
        if formula.importance.level == "sequence" and tokens.sequence_ids is None:
            raise ValueError("sequence_ids: tis='sequence' needs the sequence id of each token, (...); got None")


def _check_is_plain(name: str, value: Tensor) -> None:
    """Refuse tensors that the kernels cannot read, naming the way out."""
    if type(value).__name__ == "DTensor":
        raise TypeError(
            f"{name}: must not be a DTensor. For a head sharded by FSDP2, call it as a module inside the model's "
            "forward, upge.FusedLMHead, where its weight is gathered. For a head sharded over the vocabulary (tensor "
            "parallelism), pass weight.to_local() and group="
        )
    if value.is_nested:
        raise TypeError(
            f"{name}: must not be a nested tensor; pass its values and a mask, or sequences one after another"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name}: must be dense; got layout {_name(value.layout)}. Pass {name}.to_dense()")
    if torch.compiler.is_compiling():
        return
    is_quantized = is_traceable_wrapper_subclass(value)  # or wraps other tensors for another reason
    if is_quantized:
        raise TypeError(f"{name}: must be a plain tensor; got {type(value).__name__}. Dequantize it")
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise TypeError(
            f"{name}: torch.func transforms (grad, vmap, jvp) are not supported; "
            "use backward() or torch.autograd.grad, and a batch of tokens in place of vmap"
        )
    if torch.autograd.forward_ad.unpack_dual(value).tangent is not None:
        raise TypeError(f"{name}: forward-mode differentiation is not supported; use backward()")


def _check_tensor(
    name: str, value: object, symbol: str, shape: tuple[int, ...], dtypes: Sequence[torch.dtype], hidden: Tensor
) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: must be a tensor {symbol} of {_names(dtypes)}; got {type(value).__name__}")
    _check_is_plain(name, value)
    if value.shape != shape:
        raise ValueError(f"{name}: must have shape {symbol} = {shape}; got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name}: must be {_names(dtypes)}; got {_name(value.dtype)}")
    _check_device(name, value, hidden)


def _check_device(name: str, value: Tensor, hidden: Tensor) -> None:
    if value.device != hidden.device:
        raise ValueError(f"{name}: must be on the device of hidden, {hidden.device}; got {value.device}")


def _check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_scale(value: object) -> bool:
    """Whether a number and its inverse are far from the limits of float32."""
    return _is_number(value) and SMALLEST_SCALE <= value <= LARGEST_SCALE  # type: ignore[operator]


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(_name(dtype) for dtype in dtypes)


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
