"""The policy's weights as an inference engine loads them: one tensor at a time, under the names of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


@torch.no_grad()
def named_weights(model: torch.nn.Module, *, merged: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every weight of a model, tied ones once, in the dtype and on the device that it is trained on.

    Adapters of peft are merged (or, not `merged`, left out), 4-bit weights restored to 16 bits and shards of ZeRO-3
    gathered, each tensor on its way out: no second copy of the model exists at any time. Under ZeRO-3 all ranks must go
    through it together, and a tensor is whole only until the next is asked for.
    """
    base: torch.nn.Module = getattr(model, "get_base_model", lambda: model)()
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            continue
        module: Any = base.get_submodule(name.rpartition(".")[0].removesuffix(".base_layer"))
        adapted = merged and hasattr(module, "base_layer") and name.endswith(".weight")
        adapters = module.active_adapters if adapted else []
        parts = [parameter, *(own for key, own in module.named_parameters() if adapted and key.startswith("lora_"))]
        with _gathered(parts):
            tensor = _restored(parameter)
            for adapter in adapters:
                tensor = (tensor.float() + module.get_delta_weight(adapter).float()).to(tensor.dtype)
            yield name.replace(".base_layer.", "."), tensor


def _restored(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A weight as numbers; those in 4 bits carry how they were quantised."""
    quantised = getattr(parameter, "quant_state", None)
    if quantised is None:
        return parameter.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, quantised)


def _gathered(parameters: Sequence[Any]) -> AbstractContextManager[object]:
    """In it the shards that ZeRO-3 keeps of `parameters` are whole."""
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters))
