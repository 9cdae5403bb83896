"""Lets the tests of this folder import its helper modules, and hides what launchers of other tests left behind."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """accelerate takes LOCAL_RANK, which runs with DeepSpeed set, for a launch with several processes."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
