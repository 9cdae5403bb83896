"""What the tests of vLLM share: a world that it takes, and a stand-in for its server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fake_vllm import KEY, FakeVllm, listening
from tiny_world import make_world

from hpt.rollout.vllm import completions, connection, senders, waiting


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with tied embeddings, a head size that vLLM supports on a CPU, and a KV cache of 64 MiB."""
    path = make_world(
        tmp_path_factory.mktemp("world"),
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    settings = yaml.safe_load(path.read_text())
    settings["rollout"] |= {"engine": "vllm", "vllm": {"options": {"kv_cache_memory_bytes": 64 << 20}}}
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def key_and_quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    for module in (connection, completions):
        monkeypatch.setattr(module, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(connection, "HEALTH_SECONDS", 0.3)
    monkeypatch.setattr(senders, "MESSAGE_SECONDS", 0.5)
    monkeypatch.setattr(waiting, "SECONDS_BETWEEN_LOOKS", 0.05)


@pytest.fixture
def server(world: Path) -> Iterator[FakeVllm]:
    with listening(FakeVllm(world)) as server:
        yield server
