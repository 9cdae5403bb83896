"""Which attention implementation a model gets (`model.attention`)."""

from __future__ import annotations

import torch
from transformers.utils import is_flash_attn_2_available

from hpt.config.sections.model import ModelConfig
from hpt.support.errors import ConfigError


def attention_kind(settings: ModelConfig, device: torch.device) -> str:
    """transformers' name of the attention that `settings` ask for; ConfigError if it cannot run on `device`."""
    kind = settings.attention
    if kind == "auto":
        usable = device.type == "cuda" and settings.dtype != "float32" and is_flash_attn_2_available()
        return "flash_attention_2" if usable else "sdpa"
    problem = None
    if kind == "flash_attention_2":
        if device.type != "cuda":
            problem = f"needs a GPU; the model is on {device}"
        elif settings.dtype == "float32":
            problem = 'needs model.dtype "bfloat16" or "float16"'
        elif not is_flash_attn_2_available():
            problem = "needs the package flash-attn: pip install flash-attn --no-build-isolation"
    if kind == "flex_attention" and device.type != "cuda":
        problem = f"has a backward pass only on a GPU; the model is on {device}"
    if problem:
        raise ConfigError(f'model.attention "{kind}" {problem}, or choose "auto" or "sdpa"')
    return kind
