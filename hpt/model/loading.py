"""Language models as the settings of `model` ask for them, and the folders they are saved in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_flash_attn_2_available

from hpt.config.schema import Config, LoraConfig, ModelConfig
from hpt.support.errors import ConfigError, HptError
from hpt.support.optional_packages import installed, require
from hpt.support.seeds import seed_for

ADAPTER = "adapter_config.json"


def check_model_settings(settings: ModelConfig, device: torch.device) -> None:
    """ConfigError where a setting of `model` cannot be had on `device`, or asks for a package that is missing."""
    attention_kind(settings, device)
    _wants_liger(settings, device)
    if settings.lora:
        require("peft", "model.lora", "'hpt[peft]'")
    if settings.quantization:
        require("bitsandbytes", f'model.quantization "{settings.quantization}"', "'hpt[peft]'")


def load_model(path: str, settings: ModelConfig, device: torch.device) -> PreTrainedModel:
    """The causal language model in a folder or of a hub name, on `device`, in the dtype and attention of `settings`.

    A folder that holds adapters gives its base model with the adapters merged into the weights.
    """
    adapters = Path(path).expanduser() / ADAPTER
    if adapters.is_file():
        return _merged(adapters, settings, device)
    return _load(path, settings, device)


def load_policy(config: Config, folder: Path | None, device: torch.device) -> PreTrainedModel:
    """The model to train: that of `model.path`, or of the checkpoint in `folder`, with all that `model` asks for.

    With `model.lora` it is a peft model over the frozen `model.path`, whose adapters alone require gradients; they have
    the dtype of the model, start at no change, and are read from `folder` where there is one.
    """
    settings = config.model
    saved = folder is not None and (folder / ADAPTER).is_file()
    if folder is not None and saved != (settings.lora is not None):
        raise ConfigError(
            f"model.lora = {settings.lora}: the checkpoint {folder} holds {'adapters' if saved else 'a whole model'}; "
            "a run keeps to what it began with"
        )
    if settings.lora is None:
        return prepare_for_training(load_model(str(folder or settings.path), settings, device), settings)
    if settings.quantization and (Path(settings.path).expanduser() / ADAPTER).is_file():
        raise ConfigError(
            f"model.path = {settings.path!r} holds adapters, which cannot be merged into 4-bit weights: export the "
            "merged model first (hpt export)"
        )
    base = _load(settings.path, settings, device, quantized=True) if settings.quantization else None
    base = base or load_model(settings.path, settings, device)
    base.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, 0, "train"))
        model = with_adapters(prepare_for_training(base, settings), settings, folder)
    return model


def prepare_for_training(model: PreTrainedModel, settings: ModelConfig) -> PreTrainedModel:
    """The model with Liger's kernels and with gradient checkpointing, where `settings` ask for them."""
    if _wants_liger(settings, model.device):
        apply_liger(model)
    if settings.gradient_checkpointing:
        # Reentrant checkpoints have no gradient where a layer's input needs none, as above a frozen embedding.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if settings.gradient_checkpointing == "offload":
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module._gradient_checkpointing_func = _checkpoint_in_cpu_memory  # type: ignore[assignment]
    return model


def save_model(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Writes what `load_model` and `load_policy` read: the model, or of a peft model its adapters (peft's format).

    weights: its state dict, where its modules do not hold all of it.
    """
    if not is_adapted(model):
        model.save_pretrained(folder, state_dict=weights)
        return
    # peft's own choice for embeddings would ask the hub for the base model's configuration.
    model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)
    (folder / "README.md").unlink(missing_ok=True)  # peft's form for a model card
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def is_adapted(model: torch.nn.Module) -> bool:
    """Whether it is a peft model."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def attention_kind(settings: ModelConfig, device: torch.device) -> str:
    """The attention that `settings` mean on `device`, in the names of transformers; ConfigError where it cannot run."""
    kind = settings.attention
    problem = None
    if kind == "auto":
        usable = device.type == "cuda" and settings.dtype != "float32" and is_flash_attn_2_available()
        return "flash_attention_2" if usable else "sdpa"
    if kind == "flash_attention_2":
        if device.type != "cuda":
            problem = f"needs a GPU; the model is on {device}"
        elif settings.dtype == "float32":
            problem = 'needs model.dtype "bfloat16" or "float16"'
        elif not is_flash_attn_2_available():
            problem = "needs the package flash-attn: pip install flash-attn --no-build-isolation"
    if kind == "flex_attention" and device.type != "cuda":
        problem = f"has a backward pass on a GPU only; the model is on {device}"
    if problem:
        raise ConfigError(f'model.attention "{kind}" {problem}, or choose "auto" or "sdpa"')
    return kind


def apply_liger(model: PreTrainedModel) -> None:
    """Liger's norms, rotary embeddings and MLPs in place of the model's own; its losses stay out."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


def _wants_liger(settings: ModelConfig, device: torch.device) -> bool:
    if settings.liger == "auto":
        return device.type == "cuda" and installed("liger_kernel")
    if settings.liger:
        require("liger_kernel", "model.liger", "'hpt[gpu]'")
        if device.type != "cuda":
            raise ConfigError(f'model.liger = true needs a GPU, the model is on {device}; choose "auto"')
    return settings.liger


def _load(path: str, settings: ModelConfig, device: torch.device, *, quantized: bool = False) -> PreTrainedModel:
    dtype = getattr(torch, settings.dtype)
    options: dict[str, Any] = {}
    if quantized:
        # The weights are quantised as they arrive on the device, so the whole model is nowhere in 16 bits.
        options["device_map"] = {"": device}
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention_kind(settings, device),
            trust_remote_code=settings.trust_remote_code,
            **options,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise HptError(f"model.path = {path!r}: no causal language model could be loaded: {error}") from error
    if not quantized:
        return model.to(device)  # type: ignore[arg-type]
    for module in model.modules():
        # On some CPUs bitsandbytes repacks the weights in the first evaluation, after which they have no backward.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def _merged(adapters: Path, settings: ModelConfig, device: torch.device) -> PreTrainedModel:
    require("peft", f"the adapters in {adapters.parent}", "'hpt[peft]'")
    from peft import PeftModel

    base = json.loads(adapters.read_text(encoding="utf-8"))["base_model_name_or_path"]
    try:
        model = load_model(base, settings, device)
    except HptError as error:
        raise HptError(f"{adapters}: the base model of the adapters: {error}") from error
    return PeftModel.from_pretrained(model, str(adapters.parent)).merge_and_unload()


def with_adapters(base: PreTrainedModel, settings: ModelConfig, folder: Path | None) -> PreTrainedModel:
    """`base` with adapters, of `folder` or new ones, that are trained in its dtype."""
    import peft

    try:
        if folder is not None:
            model: Any = peft.PeftModel.from_pretrained(
                base, str(folder), is_trainable=True, autocast_adapter_dtype=False
            )
        else:
            lora = settings.lora or LoraConfig()
            shape = peft.LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
                lora_dropout=lora.dropout,
                target_modules=lora.targets,
                task_type="CAUSAL_LM",
            )
            base.name_or_path = settings.path  # what the saved adapters will call their base
            model = peft.get_peft_model(base, shape, autocast_adapter_dtype=False)
    except (OSError, ValueError, SafetensorError) as error:
        raise HptError(f"model.lora = {settings.lora}: {error}") from error
    for parameter in model.parameters():
        if parameter.requires_grad:  # over 4-bit weights peft makes them float32
            parameter.data = parameter.data.to(getattr(torch, settings.dtype))
    return model


def _checkpoint_in_cpu_memory(function: Callable[..., Any], *inputs: Any) -> Any:
    """A layer that keeps nothing but its input for the backward pass, and that in CPU memory, pinned for a GPU."""
    with save_on_cpu(pin_memory=True):
        return checkpoint(function, *inputs, use_reentrant=False)
