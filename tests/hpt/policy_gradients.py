"""Gradients of a small policy on rows of several signals, which tests of models compare."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.method.micro_batches import MicroBatch, micro_batches
from hpt.method.rows import Row, Signal
from hpt.model.policy import Policy

CPU = torch.device("cpu")


LORA = "model.lora={rank: 4, alpha: 8}"


def settings(world: Path, *changes: str) -> Config:
    return load_config(world, changes)


def batches(packed: bool) -> list[MicroBatch]:
    """Rows of several lengths and signals."""
    generator = torch.Generator().manual_seed(1)
    rows = [
        Row(torch.randint(2, 20, (length,), generator=generator).tolist(), prompt, signal, 1 / 40, advantage)
        for length, prompt, signal, advantage in (
            (9, 4, Signal.RL, 1.0),
            (5, 2, Signal.RL, -0.5),
            (12, 3, Signal.SFT, 1.0),
            (7, 6, Signal.OFF_POLICY, 1.0),
        )
    ]
    return micro_batches(rows, 60, packed=packed)


def gradients(model: PreTrainedModel, config: Config, packed: bool = False) -> dict[str, torch.Tensor]:
    policy = Policy(model, config)
    model.train()
    model.zero_grad()
    for batch in batches(packed):
        policy.loss(batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_signal(model: PreTrainedModel) -> PreTrainedModel:
    """New adapters have B = 0, so that A has no gradient: makes B random."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], **tolerance)
