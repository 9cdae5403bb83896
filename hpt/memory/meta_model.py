"""A recipe's model on the meta device: every parameter's name, shape and dtype from its config, without data."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hpt.config.recipe import shipped_model_config
from hpt.config.sections.model import ModelConfig
from hpt.model.adapters import with_adapters
from hpt.model.loading import prepare_for_training
from hpt.support.errors import HptError
from hpt.support.hub import missing_local_path
from hpt.support.model_config import read_model_config
from hpt.support.optional_packages import require

# Bytes of a 4-bit weight with its scales: one 8-bit scale per 64 weights, one float32 per 256 scales (bitsandbytes'
# double quantization, arXiv 2305.14314).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


class ArchitectureNotFound(HptError):
    """There is no config.json for the model."""


@dataclass(frozen=True)
class Architecture:
    """A model's config, with the changes of `model.config`. source: where it was found, to be shown."""

    config: PretrainedConfig
    source: str

    def with_layers(self, count: int) -> Architecture:
        """The same model with only its first `count` layers."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = count
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:count]
        return Architecture(config, self.source)


def read_architecture(settings: ModelConfig) -> Architecture:
    """The model's config, with `model.config`: from its folder or the hub's cache, else as shipped, else from the hub.

    Raises ArchitectureNotFound if none of them has it, HptError where it cannot be read, and ConfigError where
    `model.config` does not fit it.
    """
    path, trusted = settings.path, settings.trust_remote_code
    try:
        found = read_model_config(path, settings.config, trust_remote_code=trusted, local_files_only=True)
        return Architecture(found, path)
    except (OSError, ValueError):
        pass
    shipped = shipped_model_config(path)
    if shipped.is_file():
        return Architecture(read_model_config(str(shipped), settings.config), f"{path}, by the config shipped with hpt")
    folder = Path(path).expanduser()
    if not folder.exists() and (problem := missing_local_path(path)):
        raise ArchitectureNotFound(f"model.path = {path!r}: {problem}")
    try:
        return Architecture(read_model_config(path, settings.config, trust_remote_code=trusted), path)
    except (OSError, ValueError) as error:
        if (folder / "config.json").is_file():
            own_code = "custom code" in str(error) and not trusted
            hint = ". Code in the model's folder is only run with model.trust_remote_code=true" if own_code else ""
            reason = str(error).splitlines()[0].rstrip(" .")
            raise HptError(f"model.path = {path!r}: its config.json cannot be read: {reason}{hint}") from None
        if folder.exists():
            raise ArchitectureNotFound(f"model.path = {path!r}: the folder has no config.json") from None
        raise ArchitectureNotFound(
            f"model.path = {path!r}: no config.json found, neither in a folder of that name nor on the Hugging Face "
            f"hub, and hpt ships none for it: {str(error).splitlines()[0]}"
        ) from None


def build_meta_model(architecture: Architecture, settings: ModelConfig, attention: str) -> PreTrainedModel:
    """The model as it would be trained, adapters and gradient checkpointing included, on the meta device.

    attention: an implementation registered with transformers (see `hpt.memory.trace`). Weights that would be quantized
    to nf4 have the model's dtype. Raises HptError if the config is not that of a causal language model.
    """
    # Liger's kernels need a GPU, and the meta device has no CPU memory to move activations to.
    checkpointing = bool(settings.gradient_checkpointing)
    on_meta = settings.model_copy(update={"liger": False, "gradient_checkpointing": checkpointing})
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                architecture.config,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=attention,
                trust_remote_code=settings.trust_remote_code,
            )
    except ValueError as error:
        raise HptError(f"model.path = {settings.path!r}: not a causal language model: {error}") from None
    if settings.lora is None:
        return prepare_for_training(model, on_meta)
    require("peft", "model.lora", "'hpt[peft]'")
    model.requires_grad_(False)
    with torch.device("meta"):
        return with_adapters(prepare_for_training(model, on_meta), settings, None)


@dataclass(frozen=True)
class ParameterMemory:
    """What a model's parameters take."""

    trained: list[torch.nn.Parameter]
    frozen_bytes: int
    count: int  # parameters of the model, adapters not counted
    adapter_count: int  # parameters of the adapters
    quantized_count: int  # parameters of the model that are in nf4
    dequantized_bytes: int  # of the largest nf4 weight, which is dequantized while it is used

    @property
    def trained_count(self) -> int:
        return sum(parameter.numel() for parameter in self.trained)

    @property
    def gradient_bytes(self) -> int:
        """Gradients have the parameters' dtype."""
        return sum(parameter.nbytes for parameter in self.trained)

    @property
    def weight_bytes(self) -> int:
        return self.frozen_bytes + self.gradient_bytes


def measure_parameters(model: PreTrainedModel, settings: ModelConfig) -> ParameterMemory:
    """The memory of a meta model's parameters. model.quantization applies to frozen linear layers but the head."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    quantized: set[torch.Tensor] = set()
    if settings.quantization:
        head = model.get_output_embeddings()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not head and not module.weight.requires_grad:
                quantized.add(module.weight)
    frozen_bytes = sum(parameter.nbytes for parameter in frozen if parameter not in quantized)
    frozen_bytes += round(sum(parameter.numel() * NF4_BYTES for parameter in quantized))
    adapters = sum(parameter.numel() for parameter in trained) if settings.lora else 0
    return ParameterMemory(
        trained=trained,
        frozen_bytes=frozen_bytes,
        count=sum(parameter.numel() for parameter in model.parameters()) - adapters,
        adapter_count=adapters,
        quantized_count=sum(parameter.numel() for parameter in quantized),
        dequantized_bytes=max((parameter.nbytes for parameter in quantized), default=0),
    )
