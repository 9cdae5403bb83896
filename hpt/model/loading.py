"""Loads the language models that the settings of `model` ask for, and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from hpt.config.schema import Config
from hpt.config.sections.model import ModelConfig
from hpt.model.adapters import base_model_path, holds_adapters, is_adapted, merge_adapters, with_adapters
from hpt.model.attention import attention_kind
from hpt.model.gradient_checkpointing import enable_gradient_checkpointing
from hpt.model.liger import apply_liger, uses_liger
from hpt.model.weight_files import UNREADABLE, what_is_wrong
from hpt.rollout.weights import save_adapters
from hpt.support.errors import ConfigError, HptError
from hpt.support.model_config import read_model_config
from hpt.support.optional_packages import require
from hpt.support.seeds import seed_for


def check_model_settings(settings: ModelConfig, device: torch.device) -> None:
    """ConfigError if a setting of `model` is not available on `device`, or needs a package that is missing."""
    attention_kind(settings, device)
    uses_liger(settings, device)
    if settings.lora:
        require("peft", "model.lora", "'hpt[peft]'")
    if settings.quantization:
        require("bitsandbytes", f'model.quantization "{settings.quantization}"', "'hpt[peft]'")


def load_model(
    path: str, settings: ModelConfig, device: torch.device, config: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """The causal language model in a folder or on the hub, on `device`, with dtype, attention, config of `settings`.

    A folder with adapters gives its base model with the adapters merged into the weights.
    config: replaces the model's own, if given.
    HptError if there is no such model, or if its weights do not fit its config.
    """
    config = config or _changed_config(path, settings)
    if not holds_adapters(path):
        return _load(path, settings, device, config)
    folder = Path(path).expanduser()
    require("peft", f"the adapters in {folder}", "'hpt[peft]'")
    try:
        base = load_model(base_model_path(folder), settings, device, config)
    except HptError as error:
        raise HptError(f"{folder}: the base model of the adapters: {error}") from error
    return merge_adapters(base, folder)


def load_policy(config: Config, checkpoint: Path | None, device: torch.device) -> PreTrainedModel:
    """The model to train, with everything that `model` asks for: from `checkpoint`, or from `model.path` if it is None.

    With `model.lora` it is a peft model over the frozen `model.path`. Only the adapters require gradients; they are
    read from `checkpoint`, or are new and initialised from the run's seed.
    ConfigError if the checkpoint has adapters and the recipe does not, or the other way round.
    """
    settings = config.model
    if checkpoint is not None and holds_adapters(checkpoint) != (settings.lora is not None):
        content = "adapters" if holds_adapters(checkpoint) else "a whole model"
        raise ConfigError(
            f"model.lora = {settings.lora}: the checkpoint {checkpoint} holds {content}; "
            "model.lora cannot be added or removed when a run is resumed"
        )
    if settings.lora is None:
        return prepare_for_training(load_model(str(checkpoint or settings.path), settings, device), settings)
    base = _load_base(settings, device)
    base.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, 0, "train"))
        return with_adapters(prepare_for_training(base, settings), settings, checkpoint)


def prepare_for_training(model: PreTrainedModel, settings: ModelConfig) -> PreTrainedModel:
    """Applies Liger's kernels and gradient checkpointing to `model`, if `settings` ask for them; returns `model`."""
    if uses_liger(settings, model.device):
        apply_liger(model)
    if settings.gradient_checkpointing:
        enable_gradient_checkpointing(model, offload=settings.gradient_checkpointing == "offload")
    return model


def save_model(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Writes what `load_model` and `load_policy` read: the whole model, or only the adapters of a peft model.

    weights: the model's state dict, if its modules do not hold all of it (ZeRO-3).
    """
    if not is_adapted(model):
        model.save_pretrained(folder, state_dict=weights)
        return
    save_adapters(model, folder, weights)
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def _load_base(settings: ModelConfig, device: torch.device) -> PreTrainedModel:
    """The model that adapters are trained over, in 4 bits with `model.quantization`."""
    if settings.quantization is None:
        return load_model(settings.path, settings, device)
    if holds_adapters(settings.path):
        raise ConfigError(
            f"model.path = {settings.path!r} holds adapters, which cannot be merged into 4-bit weights: export the "
            "merged model first (hpt export)"
        )
    # Weights are quantized as they arrive on the device, so the whole model is never held in 16 bits.
    model = _load(
        settings.path,
        settings,
        device,
        _changed_config(settings.path, settings),
        device_map={"": device},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, settings.dtype),
        ),
    )
    for module in model.modules():
        # On some CPUs bitsandbytes repacks the weights in the first forward pass in eval mode, which breaks backward.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def _changed_config(path: str, settings: ModelConfig) -> PreTrainedConfig | None:
    """The config to load the model in `path` with; None for the one that its weights lie beside.

    Adapters are saved with the config that they were trained with, which their base model need not have.
    """
    with_adapters = holds_adapters(path)
    if with_adapters and not (Path(path).expanduser() / "config.json").is_file():
        return None
    if not with_adapters and not settings.config:
        return None
    try:
        config = read_model_config(path, settings.config, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        raise HptError(f"model.path = {path!r}: its config cannot be read: {error}") from error
    if with_adapters and hasattr(config, "quantization_config"):
        del config.quantization_config  # of QLoRA; adapters are merged into 16-bit weights
    return config


def _load(
    path: str, settings: ModelConfig, device: torch.device, config: PreTrainedConfig | None, **options: Any
) -> PreTrainedModel:
    """options: further arguments of `from_pretrained`. With a `device_map` among them it places the model."""
    if config is not None:
        options["config"] = config
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=attention_kind(settings, device),
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with those that are missing
            **options,
        )
    except UNREADABLE as error:
        raise HptError(
            f"model.path = {path!r}: no causal language model could be loaded: {what_is_wrong(error)}"
        ) from error
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):  # such as too little memory
            raise
        raise HptError(f"model.path = {path!r}: a file of its weights is not whole: {error}") from error
    model, found = loaded
    _check_weights(path, settings, found)
    return model if "device_map" in options else model.to(device)


def _check_weights(path: str, settings: ModelConfig, found: dict[str, Any]) -> None:
    """HptError where weights would be new and random, or with `model.config` left out. found: transformers' report."""
    problems = {
        "it has no": found["missing_keys"],
        "other shapes have": [name for name, *_ in found["mismatched_keys"]],
        "there is no place for": found["unexpected_keys"] if settings.config else [],
    }
    if texts := [f"{text} {_some(sorted(names))}" for text, names in problems.items() if names]:
        changed = f" and model.config = {settings.config}" if settings.config else ""
        raise HptError(f"model.path = {path!r}: its weights do not fit its config{changed}: {'; '.join(texts)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
