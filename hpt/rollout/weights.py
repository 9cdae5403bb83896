"""The policy's weights in the two forms a rollout engine loads: tensors under checkpoint names, and saved adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

GetWeights = Callable[[], Iterable[tuple[str, torch.Tensor]]]
"""Gives the policy's current weights as (name in a checkpoint, tensor)."""


@torch.no_grad()
def named_weights(model: torch.nn.Module, *, merged: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name in a checkpoint, tensor) for every weight of `model`, tied weights once, in its dtype and device.

    merged: peft adapters are merged into the weights; otherwise they are left out.

    Each tensor is prepared when it is asked for, so there is never a second copy of the model: adapters are merged,
    4-bit weights dequantized to 16 bits, and ZeRO-3 shards gathered. Under ZeRO-3 this is a collective: every rank must
    iterate, and a tensor is only complete until the next one is asked for.
    """
    base = base_model(model)
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        layer = _adapted_layer(base, name) if merged else None
        needed = [parameter]
        if layer is not None:
            needed += [own for key, own in layer.named_parameters() if key.startswith("lora_")]
        with _gathered(needed):
            tensor = _dequantized(parameter)
            if layer is not None:
                tensor = _with_adapters(tensor, layer)
            yield name.replace(".base_layer.", "."), tensor


def save_adapters(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Writes the adapters of a peft model into `folder`, in peft's format.

    weights: the model's state dict, if its modules do not hold all of it (ZeRO-3).
    """
    # peft's default for save_embedding_layers would look up the base model's configuration on the hub.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def base_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model below peft's adapters; a model without adapters is its own base."""
    get_base_model: Any = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()


def _adapted_layer(base: torch.nn.Module, name: str) -> Any:
    """The peft layer that adapts the weight `name`; None for a weight without adapters."""
    if not name.endswith(".base_layer.weight"):
        return None
    return base.get_submodule(name.removesuffix(".base_layer.weight"))


def _with_adapters(weight: torch.Tensor, layer: Any) -> torch.Tensor:
    """The weight of a peft layer with all active adapters merged."""
    for adapter in layer.active_adapters:
        weight = (weight.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)
    return weight


def _dequantized(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The parameter's values; bitsandbytes' 4-bit weights are dequantized."""
    quantization = getattr(parameter, "quant_state", None)
    if quantization is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, quantization)


def _gathered(parameters: Sequence[Any]) -> AbstractContextManager[object]:
    """Context in which `parameters` are complete on every rank; only ZeRO-3 has anything to gather."""
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))
