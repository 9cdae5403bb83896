"""Gradient checkpointing (`model.gradient_checkpointing`), optionally with activations offloaded to CPU memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def enable_gradient_checkpointing(model: PreTrainedModel, *, offload: bool) -> None:
    """Keeps only each layer's input for the backward pass, and recomputes the rest there.

    offload: the inputs wait in CPU memory.
    """
    # A reentrant checkpoint computes no gradient if its input needs none, as above a frozen embedding.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not offload:
        return
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._gradient_checkpointing_func = _checkpoint_in_cpu_memory  # type: ignore[assignment]


def _checkpoint_in_cpu_memory(function: Callable[..., Any], *inputs: Any) -> Any:
    with save_on_cpu(pin_memory=True):
        return checkpoint(function, *inputs, use_reentrant=False)
