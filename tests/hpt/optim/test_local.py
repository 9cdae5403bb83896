"""The local engine: clipped and skipped updates, float32 masters of 16-bit weights, exact resumption."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.optim.engines import ENGINES
from hpt.optim.local import LocalEngine


def config(**optimizer: Any) -> Config:
    settings = {"output": "o", "steps": 10, "model": {"path": "m"}, "data": {"train": "t"}, "optimizer": optimizer}
    return build_config(settings, source="test")


class Line(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))


def test_updates_are_clipped_and_large_or_broken_ones_skipped() -> None:
    model = Line()
    engine = LocalEngine(model, config(lr=0.1, clip_grad_norm=1.0, skip_grad_norm=50.0, weight_decay=0.0))
    for factor, skipped in ((3.0, False), (100.0, True), (math.nan, True), (math.inf, True)):
        before = model.weight.detach().clone()
        engine.backward((factor * model.weight).sum())
        update = engine.step()
        assert update.skipped is skipped
        assert torch.equal(model.weight, before) is skipped
        if math.isfinite(factor):
            assert update.grad_norm == pytest.approx(2 * factor)  # before clipping
    assert model.weight.grad is None
    assert engine.loss_scale == 1.0  # halved only above: a scale below 1 would lose digits instead of saving them


@pytest.mark.parametrize(("clip", "factor"), [(0.5, 0.5 / (1 + 1e-6)), (1.0, 1 / (1 + 1e-6)), (2.0, 1.0)])
def test_a_gradient_is_clipped_as_torch_clips_it(clip: float, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Line()
    engine = LocalEngine(model, config(clip_grad_norm=clip))
    given: list[float] = []
    monkeypatch.setattr(engine.optimizer, "step", lambda gradient_factor: given.append(gradient_factor))
    engine.backward((0.5 * model.weight).sum())
    assert engine.step().grad_norm == 1.0
    assert given == [pytest.approx(factor, rel=1e-9)]


def test_float16_gradients_are_neither_lost_nor_too_large() -> None:
    """float16 has numbers from 6e-8 to 65,504."""
    model = Line(torch.float16)
    engine = LocalEngine(model, config(lr=0.1, weight_decay=0.0))
    engine.backward(1e-9 * model.weight.float().sum())
    update = engine.step()
    assert update.grad_norm == pytest.approx(2e-9, rel=1e-2)
    assert not update.skipped
    assert model.weight[0].item() == pytest.approx(1 - 0.1 * 1e-9 / (1e-9 + 1e-8), abs=1e-3)  # AdamW's epsilon is 1e-8
    restored = LocalEngine(Line(torch.float16), config(lr=0.1))
    for scale in (2**16, 2**15, 2**14):  # 6 times each is too large
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
        engine = LocalEngine(model, settings)
        for _ in range(600):
            engine.backward(model.weight.float().sum())
            engine.step()
    exact = models[torch.float32].weight.detach()
    assert exact[0].item() == pytest.approx(1 - 600 * 1e-5, rel=1e-4)
    assert torch.equal(models[torch.bfloat16].weight.detach(), exact.bfloat16())
    assert models[torch.bfloat16].weight[0] < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_goes_on_bit_exactly(dtype: torch.dtype) -> None:
    def train(engine: LocalEngine, model: Line, steps: int) -> None:
        for _ in range(steps):
            engine.backward((model.weight.float() ** 2).sum())
            engine.step()
            engine.end_step()

    settings = config(lr=0.01, schedule="cosine", warmup_steps=1)
    whole = Line(dtype)
    train(LocalEngine(whole, settings), whole, 6)
    first = Line(dtype)
    engine = LocalEngine(first, settings)
    train(engine, first, 3)
    second = Line(dtype)
    second.load_state_dict(first.state_dict())
    resumed = LocalEngine(second, settings)
    resumed.load_state_dict(engine.state_dict())
    train(resumed, second, 3)
    assert torch.equal(second.weight, whole.weight)


def test_a_resumed_run_may_change_its_settings() -> None:
    """State comes from the checkpoint, hyperparameters from the recipe."""
    model = Line()
    engine = LocalEngine(model, config(lr=0.01, weight_decay=0.1, schedule="linear"))
    for _ in range(5):
        engine.backward(model.weight.sum())
        engine.step()
        engine.end_step()
    changed = LocalEngine(model, config(lr=0.5, weight_decay=0.3, betas=(0.8, 0.9), schedule="linear"))
    changed.load_state_dict(engine.state_dict())
    group = changed.optimizer.param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.8, 0.9))
    assert changed.step().lr == 0.5 * 0.5  # half of the 10 steps are done
    assert changed.optimizer.state[model.weight]["step"] == 6


def test_the_schema_names_the_engines_that_exist() -> None:
    assert set(ENGINES) == set(get_args(Config.model_fields["engine"].annotation))
