"""Which attention implementation a model gets (`model.attention`)."""

from __future__ import annotations

import torch
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import KERNELS_MAX_VERSION, KERNELS_MIN_VERSION, is_kernels_available

from hpt.config.sections.model import ModelConfig
from hpt.support.errors import ConfigError
from hpt.support.hub import find_hub

PREBUILT = "kernels-community/flash-attn2"
"""Flash attention as the package `kernels` downloads it from the hub, compiled."""

INSTALL_KERNELS = "pip install 'hpt[flash]'"
INSTALL_FLASH_ATTN = "pip install flash-attn --no-build-isolation"


def attention_kind(settings: ModelConfig, device: torch.device) -> str:
    """transformers' name of the attention that `settings` ask for; ConfigError if it cannot run on `device`.

    auto downloads the prebuilt kernels where they are the best there is, and goes without them where it cannot.
    """
    kind = settings.attention
    if kind == "auto":
        if device.type != "cuda" or settings.dtype == "float32":
            return "sdpa"
        if is_flash_attn_2_available():
            return "flash_attention_2"
        if is_kernels_available():
            find_hub()  # where it does not answer, only downloaded kernels are looked for
            if is_flash_attn_2_available(kernels_fallback_ok=True):
                return PREBUILT
        return "sdpa"
    problem = None
    if "flash" in kind:
        if device.type != "cuda":
            problem = f"needs a GPU; the model is on {device}"
        elif settings.dtype == "float32":
            problem = 'needs model.dtype "bfloat16" or "float16"'
        elif kind == "flash_attention_2" and not has_flash_attention():
            problem = f"needs the package kernels ({INSTALL_KERNELS}) or flash-attn ({INSTALL_FLASH_ATTN})"
        elif "/" in kind and not is_kernels_available():
            versions = f">={KERNELS_MIN_VERSION},<{KERNELS_MAX_VERSION}"
            problem = f"needs the package kernels, {versions}: {INSTALL_KERNELS}"
    if kind == "flex_attention" and device.type != "cuda":
        problem = f"has a backward pass only on a GPU; the model is on {device}"
    if problem:
        raise ConfigError(f'model.attention "{kind}" {problem}, or choose "auto" or "sdpa"')
    return kind


def has_flash_attention() -> bool:
    """Whether a package with flash attention is installed: flash-attn, or `kernels`, which downloads it."""
    return is_flash_attn_2_available() or is_kernels_available()
