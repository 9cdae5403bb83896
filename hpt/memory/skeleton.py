"""A model without data, on the meta device: every parameter's name, shape and dtype from its config alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from hpt.config.recipe import RECIPES
from hpt.config.schema import ModelConfig
from hpt.model.adapters import with_adapters
from hpt.model.loading import prepare_for_training
from hpt.support.errors import HptError
from hpt.support.optional_packages import require

SHIPPED = RECIPES / "models"

# Bytes of a 4-bit weight with its scales: one 8-bit scale for 64 weights, one float32 for 256 scales (bitsandbytes'
# double quantization, arXiv 2305.14314).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


class NoArchitecture(HptError):
    """A model without a config.json to plan by."""


@dataclass(frozen=True)
class Architecture:
    config: PretrainedConfig
    source: str  # where the numbers came from, to be shown

    def shortened(self, layers: int) -> Architecture:
        """The same model with its first `layers` layers alone."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        return Architecture(config, self.source)


def read_architecture(settings: ModelConfig) -> Architecture:
    """The model's config.json: from its folder or the hub's cache, else as shipped with hpt, else from the hub.

    Raises NoArchitecture where none of them has it.
    """
    path = settings.path
    try:
        found = AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code, local_files_only=True)
        return Architecture(found, path)
    except (OSError, ValueError):
        pass
    shipped = SHIPPED / f"{path.rpartition('/')[2].lower()}.json"
    if shipped.is_file():
        return Architecture(AutoConfig.from_pretrained(shipped), f"{path}, by the numbers shipped with hpt")
    try:
        return Architecture(AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code), path)
    except (OSError, ValueError) as error:
        raise NoArchitecture(
            f"model.path = {path!r}: there is no config.json to plan by, neither in a folder of that name nor on the "
            f"Hugging Face hub, and hpt ships none for it: {str(error).splitlines()[0]}"
        ) from None


def build_skeleton(architecture: Architecture, settings: ModelConfig, attention: str) -> PreTrainedModel:
    """The model of a recipe on the meta device, adapters and checkpointing included; nf4 weights in their dtype."""
    # Liger's kernels need a GPU, and there is no CPU memory to move activations to.
    recomputed = bool(settings.gradient_checkpointing)
    on_meta = settings.model_copy(update={"liger": False, "gradient_checkpointing": recomputed})
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                architecture.config,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=attention,
                trust_remote_code=settings.trust_remote_code,
            )
    except ValueError as error:
        raise HptError(f"model.path = {settings.path!r}: is not a causal language model to plan for: {error}") from None
    if settings.lora is None:
        return prepare_for_training(model, on_meta)
    require("peft", "model.lora", "'hpt[peft]'")
    model.requires_grad_(False)
    with torch.device("meta"):
        return with_adapters(prepare_for_training(model, on_meta), settings, None)


@dataclass(frozen=True)
class Weights:
    """What a model's parameters weigh."""

    trained: list[torch.nn.Parameter]
    frozen: int  # bytes
    total: int  # parameters, adapters not counted
    adapters: int  # parameters
    dequantized: int  # bytes of the largest nf4 weight while it is used

    @property
    def bytes(self) -> int:
        return self.frozen + sum(parameter.nbytes for parameter in self.trained)

    @property
    def gradients(self) -> int:
        return sum(parameter.nbytes for parameter in self.trained)

    @property
    def trained_count(self) -> int:
        return sum(parameter.numel() for parameter in self.trained)


def weigh(model: PreTrainedModel, settings: ModelConfig) -> Weights:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    quantized: dict[int, torch.Tensor] = {}
    if settings.quantization:
        head = model.get_output_embeddings()
        quantized = {
            id(module.weight): module.weight
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head and not module.weight.requires_grad
        }
    frozen = sum(parameter.nbytes for key, parameter in held.items() if key not in quantized)
    adapters = sum(parameter.numel() for parameter in trained) if settings.lora else 0
    return Weights(
        trained=trained,
        frozen=frozen + round(sum(parameter.numel() * NF4_BYTES for parameter in quantized.values())),
        total=sum(parameter.numel() for parameter in model.parameters()) - adapters,
        adapters=adapters,
        dequantized=max((parameter.nbytes for parameter in quantized.values()), default=0),
    )
