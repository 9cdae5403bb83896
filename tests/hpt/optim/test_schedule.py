"""Learning rates over the steps of a run, by torch's schedulers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from hpt.config.sections.training import OptimizerConfig
from hpt.optim.schedule import advance, learning_rate_factor, make_schedule

STEPS = 10


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.0)


def learning_rates(*, done: int = 0, **settings: Any) -> list[float]:
    """After `done`, `done` + 1, ... `STEPS` training steps."""
    schedule = make_schedule(optimizer(), OptimizerConfig(**settings), STEPS, done=done)
    found = [schedule.get_last_lr()[0]]
    for _ in range(done, STEPS):
        advance(schedule)
        found.append(schedule.get_last_lr()[0])
    return found


def test_schedules() -> None:
    scales = {name: learning_rates(lr=1.0, schedule=name, warmup_steps=2) for name in ("constant", "linear", "cosine")}
    for values in scales.values():
        assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])  # no step is spent at a rate of 0
    assert scales["constant"][3:] == [1.0] * 8
    assert scales["linear"][2:] == pytest.approx([1 - i / 8 for i in range(9)])
    assert scales["cosine"][2:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(9)])
    assert learning_rates(lr=1.0)[0] == 1.0


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_every_rate_is_the_factor_times_lr_to_the_last_bit(name: str) -> None:
    settings = OptimizerConfig(lr=3e-4, schedule=name, warmup_steps=3)
    factor = learning_rate_factor(settings, STEPS)
    expected = [settings.lr * factor(done) for done in range(STEPS + 1)]
    assert learning_rates(lr=3e-4, schedule=name, warmup_steps=3) == expected
    for done in range(STEPS):
        assert learning_rates(done=done, lr=3e-4, schedule=name, warmup_steps=3) == expected[done:]


def test_a_resumed_run_may_change_its_learning_rate() -> None:
    loaded = optimizer()
    loaded.param_groups[0] |= {"lr": 0.3, "initial_lr": 0.6}
    make_schedule(loaded, OptimizerConfig(lr=0.1, schedule="linear"), STEPS, done=5)
    assert loaded.param_groups[0]["lr"] == 0.1 * 0.5


def test_steps_whose_updates_were_all_skipped_give_no_warning() -> None:
    schedule = make_schedule(optimizer(), OptimizerConfig(), STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(schedule)
