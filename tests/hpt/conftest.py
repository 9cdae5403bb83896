"""What tests of hpt share: a world small enough to train in a second, and what they import from this folder."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# Rewards that a random model can earn; workers of the verifier import this folder's `rewards`.
FOLDER = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join([FOLDER, os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, FOLDER)
torch.set_num_threads(1)

from tiny_world import make_world  # noqa: E402


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a world that tests only read from."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def hang_up() -> Iterator[None]:
    """SIGHUP as a terminal sends it, also where the tests run under nohup, which ignores it."""
    earlier = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, earlier)


@pytest.fixture
def metrics_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads a run's metrics without times and memory, which no two runs share."""
    measured = ("time/", "throughput/", "memory/")

    def read(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith(measured)} for line in lines]

    return read
