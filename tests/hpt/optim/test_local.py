"""The optimizer side: schedules, skipped updates, and float32 masters of 16-bit weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.optim.local import Engine, learning_rate_scale


def config(**optimizer: Any) -> Config:
    settings = {"output": "o", "steps": 10, "model": {"path": "m"}, "data": {"train": "t"}, "optimizer": optimizer}
    return build_config(settings, source="test")


def test_schedules() -> None:
    scales = {
        name: [learning_rate_scale(config(schedule=name, warmup_steps=2))(step) for step in range(11)]
        for name in ("constant", "linear", "cosine")
    }
    for values in scales.values():
        assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])  # no step is spent at a rate of 0
    assert scales["constant"][3:] == [1.0] * 8
    assert scales["linear"][2:] == pytest.approx([1 - i / 8 for i in range(9)])
    assert scales["cosine"][2:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(9)])
    assert learning_rate_scale(config())(0) == 1.0


class Line(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))


def test_updates_are_clipped_and_large_or_broken_ones_skipped() -> None:
    model = Line()
    engine = Engine(model, config(lr=0.1, clip_grad_norm=1.0, skip_grad_norm=50.0, weight_decay=0.0))
    for factor, skipped in ((3.0, False), (100.0, True), (math.nan, True), (math.inf, True)):
        before = model.weight.detach().clone()
        engine.backward((factor * model.weight).sum())
        update = engine.step()
        assert update.skipped is skipped
        assert torch.equal(model.weight, before) is skipped
        if math.isfinite(factor):
            assert update.grad_norm == pytest.approx(2 * factor)  # before clipping
    assert model.weight.grad is None


def test_float16_gradients_are_neither_lost_nor_too_large() -> None:
    """Numbers of float16 lie between 6e-8 and 65,504."""
    model = Line(torch.float16)
    engine = Engine(model, config(lr=0.1, weight_decay=0.0))
    engine.backward(1e-9 * model.weight.float().sum())
    update = engine.step()
    assert update.grad_norm == pytest.approx(2e-9, rel=1e-2)
    assert not update.skipped
    assert model.weight[0].item() == pytest.approx(1 - 0.1 * 1e-9 / (1e-9 + 1e-8), abs=1e-3)  # AdamW's epsilon is 1e-8
    restored = Engine(Line(torch.float16), config(lr=0.1))
    for scale in (2**16, 2**15, 2**14):  # 6 of each is too large
        assert engine.loss_scale == scale
        before = model.weight.detach().clone()
        engine.backward(6.0 * model.weight.float().sum())
        assert engine.step().skipped
        assert torch.equal(model.weight, before)
    restored.load_state_dict(engine.state_dict())
    for each in (engine, restored):
        each.backward(6.0 * each.module.weight.float().sum())
        update = each.step()
        assert not update.skipped
        assert update.grad_norm == pytest.approx(12.0)


def test_small_steps_of_16_bit_weights_are_not_lost() -> None:
    """An AdamW step at lr 1e-5 moves a weight of 1 by 1e-5; bfloat16 rounds at 1/256 there, float32 keeps the sum."""
    settings = config(lr=1e-5, weight_decay=0.0)
    models = {dtype: Line(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for model in models.values():
        engine = Engine(model, settings)
        for _ in range(600):
            engine.backward(model.weight.float().sum())
            engine.step()
    exact = models[torch.float32].weight.detach()
    assert exact[0].item() == pytest.approx(1 - 600 * 1e-5, rel=1e-4)
    assert torch.equal(models[torch.bfloat16].weight.detach(), exact.bfloat16())
    assert models[torch.bfloat16].weight[0] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_goes_on_bit_exactly(dtype: torch.dtype) -> None:
    def train(engine: Engine, model: Line, steps: int) -> None:
        for _ in range(steps):
            engine.backward((model.weight.float() ** 2).sum())
            engine.step()
            engine.end_step()

    settings = config(lr=0.01, schedule="cosine", warmup_steps=1)
    whole = Line(dtype)
    train(Engine(whole, settings), whole, 6)
    first = Line(dtype)
    engine = Engine(first, settings)
    train(engine, first, 3)
    second = Line(dtype)
    second.load_state_dict(first.state_dict())
    resumed = Engine(second, settings)
    resumed.load_state_dict(engine.state_dict())
    train(resumed, second, 3)
    assert torch.equal(second.weight, whole.weight)
