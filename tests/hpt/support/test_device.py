"""The device of a recipe: one that torch has, or an error that names what there is."""

from __future__ import annotations

import re

import pytest
import torch

from hpt.support.device import pick_device
from hpt.support.errors import ConfigError


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu"), ("cuda", 1, "cuda"), ("cuda:1", 2, "cuda:1")],
)
def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, device: str) -> None:
    with_gpus(monkeypatch, gpus)
    assert str(pick_device(name)) == device


@pytest.mark.parametrize(
    ("name", "gpus", "said"),
    [
        ("cuda:2", 2, "device = 'cuda:2': torch sees 2 GPUs; allowed here are up to cuda:1"),
        ("cuda:0", 0, "device = 'cuda:0': torch sees no GPU; allowed here are auto and cpu"),
        ("meta", 1, "device = 'meta': allowed are auto, cpu, cuda and cuda:N"),
        ("cuda:", 1, "device = 'cuda:': allowed are"),
        ("gpu", 1, "device = 'gpu': allowed are"),
    ],
)
def test_devices_that_are_not(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, said: str) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(ConfigError, match=re.escape(said)):
        pick_device(name)


def test_a_device_of_another_machine_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    assert str(pick_device("cuda:7", here=False)) == "cuda:7"
