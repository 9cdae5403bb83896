"""Liger's Triton kernels for a model's layers (`model.liger`)."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hpt.config.sections.model import ModelConfig
from hpt.support.errors import ConfigError
from hpt.support.optional_packages import installed, require


def uses_liger(settings: ModelConfig, device: torch.device) -> bool:
    """Whether a model on `device` gets Liger's kernels; ConfigError if `settings` ask for them and they cannot run."""
    if settings.liger == "auto":
        return device.type == "cuda" and installed("liger_kernel")
    if settings.liger:
        require("liger_kernel", "model.liger", "'hpt[gpu]'")
        if device.type != "cuda":
            raise ConfigError(f'model.liger = true needs a GPU, the model is on {device}; choose "auto"')
    return settings.liger


def apply_liger(model: PreTrainedModel) -> None:
    """Replaces the model's norms, rotary embeddings and MLPs by Liger's, but not its loss."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
