"""The processes of a run, before they are connected."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hpt.config.recipe import load_config
from hpt.support.errors import HptError
from hpt.training.processes import connected


def test_a_port_in_use_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        launcher = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in launcher.items():
            monkeypatch.setenv(name, str(value))
        config = load_config(world, ["engine=deepspeed", "device=cpu"])
        said = rf"cannot be connected: .*{port}.*in use.*choose a free one"
        with pytest.raises(HptError, match=said), connected(config):
            pass
