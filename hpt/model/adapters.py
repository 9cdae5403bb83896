"""Low-rank adapters by peft (`model.lora`): added to a base model, read from a folder, or merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hpt.config.sections.model import LoraConfig, ModelConfig
from hpt.model.weight_files import UNREADABLE, what_is_wrong
from hpt.support.errors import HptError

ADAPTER_CONFIG = "adapter_config.json"
"""The file by which peft recognises a folder with adapters."""


def is_adapted(model: torch.nn.Module) -> bool:
    """Whether `model` is a peft model."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def holds_adapters(path: str | Path) -> bool:
    """Whether `path` is a folder with adapters."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def base_model_path(folder: Path) -> str:
    """Folder or hub name of the model that the adapters in `folder` belong to."""
    return _adapter_config(folder)["base_model_name_or_path"]


def adapter_rank(folder: Path) -> int:
    """The largest rank among the adapters in `folder`."""
    config = _adapter_config(folder)
    return max(config["r"], *(config.get("rank_pattern") or {}).values(), 1)


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HptError(f"{path} cannot be read: {error}") from error
    if not (
        isinstance(config, dict)
        and isinstance(config.get("base_model_name_or_path"), str)
        and isinstance(config.get("r"), int)
    ):
        raise HptError(f"{path}: must have base_model_name_or_path, a text, and r, an integer")
    return config


def merge_adapters(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`base` with the adapters in `folder` merged into its weights. HptError if they cannot be read."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    except UNREADABLE as error:
        raise HptError(f"the adapters in {folder} cannot be read: {what_is_wrong(error)}") from error


def with_adapters(base: PreTrainedModel, settings: ModelConfig, folder: Path | None) -> PreTrainedModel:
    """`base` with trainable adapters in the model's dtype: those saved in `folder`, or new ones as `model.lora` says.

    New adapters do not change the model's output. HptError if they do not fit the model.
    """
    import peft

    try:
        if folder is not None:
            model: Any = peft.PeftModel.from_pretrained(
                base, str(folder), is_trainable=True, autocast_adapter_dtype=False
            )
        else:
            base.name_or_path = settings.path  # saved adapters name their base model by this
            model = peft.get_peft_model(base, _peft_config(settings.lora or LoraConfig()), autocast_adapter_dtype=False)
    except UNREADABLE as error:
        raise HptError(f"model.lora = {settings.lora}: {what_is_wrong(error)}") from error
    for parameter in model.parameters():
        if parameter.requires_grad:  # peft makes adapters of 4-bit weights float32
            parameter.data = parameter.data.to(getattr(torch, settings.dtype))
    return model


def _peft_config(lora: LoraConfig) -> Any:
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.numerator,  # type: ignore[arg-type]  # peft accepts floats
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
