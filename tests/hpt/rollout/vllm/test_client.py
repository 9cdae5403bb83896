"""Rollouts and weight updates over a vLLM server, with a stand-in for the server: these tests run without vLLM."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import FakeVllm
from vllm_clients import PROMPTS, SAMPLING, client_of, load, mismatch, perturb, serve_another_model, shown, train

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.rollout import Rollout, engines
from hpt.rollout.vllm.senders import GlooSender
from hpt.rollout.vllm.transfer import UPDATING
from hpt.support.errors import ConfigError, HptError, RolloutError

pytestmark = pytest.mark.usefixtures("key_and_quick_looks")


def test_rollouts_are_sampled_from_the_policys_current_weights(world: Path, server: FakeVllm) -> None:
    model = load(world)
    client = client_of(world, server.url, model)
    seen: dict[tuple[int, int], Rollout] = {}

    def remember(index: int, place: int, rollout: Rollout) -> None:
        seen[index, place] = rollout

    for _ in range(3):
        seen.clear()
        groups = client.generate(PROMPTS, SAMPLING, 3, on_rollout=remember)
        assert mismatch(model, groups) < 1e-5
        assert [len(group) for group in groups] == [2, 2, 2]
        assert seen == {(i, j): rollout for i, group in enumerate(groups) for j, rollout in enumerate(group)}
        perturb(model)
        assert client.generate(PROMPTS, SAMPLING, 3) == groups  # the server still has the old weights
        assert client.generate(PROMPTS, SAMPLING, 4) != groups
        client.weights_changed()
    assert server.paths.count("/init_weight_transfer_engine") == 1


def test_an_update_is_the_lifecycle_of_vllm(world: Path, server: FakeVllm) -> None:
    client = client_of(world, server.url, load(world))
    client.generate(PROMPTS, SAMPLING, 3)
    server.paths.clear()
    client.weights_changed()
    client.generate(PROMPTS[:1], SAMPLING, 3)
    posted = [path for path in server.paths if path not in ("/weight_info", "/health")]
    assert posted == [
        *("/pause", "/update_weight_version", "/start_weight_update", "/update_weights", "/finish_weight_update"),
        *("/resume", "/reset_prefix_cache", "/v1/completions", "/v1/completions"),
    ]


def test_closing_ends_the_transfer(world: Path, server: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[object] = []
    shutdown = GlooSender.shutdown
    monkeypatch.setattr(GlooSender, "shutdown", lambda self: (ended.append(self), shutdown(self)))
    client = client_of(world, server.url, load(world))
    client.generate(PROMPTS[:1], SAMPLING, 3)
    client.close()
    assert len(ended) == 1


def test_two_runs_cannot_share_a_server(world: Path, server: FakeVllm) -> None:
    model = load(world)
    one, other = client_of(world, server.url, model), client_of(world, server.url, model)
    one.generate(PROMPTS, SAMPLING, 3)
    other.generate(PROMPTS, SAMPLING, 3)
    with pytest.raises(RolloutError, match="does another run use it"):
        one.generate(PROMPTS, SAMPLING, 3)


def test_rollouts_that_another_update_may_have_touched_are_not_used(world: Path, server: FakeVllm) -> None:
    client = client_of(world, server.url, load(world))
    client.generate(PROMPTS, SAMPLING, 3)
    sample = server.sample

    def with_an_update(request: dict[str, Any]) -> Any:
        server.version = UPDATING
        return sample(request)

    server.sample = with_an_update  # type: ignore[method-assign]
    used: list[Any] = []
    with pytest.raises(RolloutError, match="has the weights 'updating'"):
        client.generate(PROMPTS, SAMPLING, 3, on_rollout=lambda *rollout: used.append(rollout))
    assert not used


@pytest.mark.parametrize("broken_at", ["/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"])
def test_an_update_that_fails_is_never_sampled_from_and_can_be_made_again(
    world: Path, server: FakeVllm, broken_at: str
) -> None:
    model = load(world)
    client = client_of(world, server.url, model)
    client.generate(PROMPTS, SAMPLING, 3)
    perturb(model)
    client.weights_changed()
    server.behave[broken_at] = lambda handler: handler.reply({"error": {"message": "no memory"}}, 500)
    with pytest.raises(RolloutError, match="no memory"):
        client.generate(PROMPTS, SAMPLING, 3)
    assert "/v1/completions" not in server.paths[-4:]
    server.behave.clear()
    assert mismatch(model, client.generate(PROMPTS, SAMPLING, 3)) < 1e-5


def test_a_server_that_gives_up_in_the_middle_of_an_update_does_not_keep_the_trainer_waiting(
    world: Path, server: FakeVllm
) -> None:
    model = load(world)
    client = client_of(world, server.url, model)
    receive = server.receive

    def lacks_a_weight(names: list[str], **described: Any) -> None:
        receive(names=["no.such.weight" if place == 3 else name for place, name in enumerate(names)], **described)

    server.receive = lacks_a_weight  # type: ignore[method-assign]
    with pytest.raises(RolloutError, match=r"no\.such\.weight"):
        client.generate(PROMPTS, SAMPLING, 3)
    assert server.version == UPDATING
    server.receive = receive  # type: ignore[method-assign]
    assert mismatch(model, client.generate(PROMPTS, SAMPLING, 3)) < 1e-5


def test_weights_that_cannot_be_read_end_the_update(world: Path, server: FakeVllm) -> None:
    model = load(world)
    client = client_of(world, server.url, model)
    client.generate(PROMPTS, SAMPLING, 3)
    weights = client._weights

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from list(weights())[:2]
        raise OSError("no weights today")

    client._weights = broken
    client.weights_changed()
    with pytest.raises(OSError, match="no weights today"):
        client.generate(PROMPTS, SAMPLING, 3)
    client._weights = weights
    assert mismatch(model, client.generate(PROMPTS, SAMPLING, 3)) < 1e-5


def serve_another_dtype(server: FakeVllm) -> None:
    server.settings["dtype"] = "torch.bfloat16"


def serve_with_top_p(server: FakeVllm) -> None:
    server.settings["logprobs_mode"] = "raw_logprobs"


def serve_another_rope(server: FakeVllm) -> None:
    server.settings["hf_overrides"] = {"rope_parameters": {"rope_theta": 5.0}}


def serve_nccl(server: FakeVllm) -> None:
    server.backend = "nccl"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (serve_another_model, "serves the world's, another model than model.path = "),
        (serve_another_dtype, "dtype is 'bfloat16' there and 'float32' here"),
        (serve_with_top_p, "logprobs_mode is 'raw_logprobs' there and 'processed_logprobs' here"),
        (serve_another_rope, "hf_overrides is {'rope_parameters'"),
        (serve_nccl, "rollout.vllm.weight_transfer is 'nccl' there and 'gloo' here"),
    ],
)
def test_a_server_of_another_run_is_refused_before_a_model_is_loaded(
    world: Path,
    tmp_path: Path,
    server: FakeVllm,
    change: Callable[[FakeVllm], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(server)
    assert train(world, tmp_path / "run", server.url) == 2
    error = shown(capsys)
    assert message in error
    assert "hpt serve RECIPE" in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_server_for_shorter_sequences_is_refused(world: Path, server: FakeVllm) -> None:
    server.max_model_len = 10
    with pytest.raises(HptError, match=r"takes 10 tokens of prompt and response, and this run's longest have \d+"):
        client_of(world, server.url, load(world))


def test_an_unreachable_server_is_reported_before_a_model_is_loaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert train(world, tmp_path / "run", url) == 2
    error = shown(capsys)
    assert f"rollout.vllm.url = '{url}': the vLLM server cannot be reached" in error
    assert "hpt serve RECIPE" in error


def test_another_web_server_is_refused(world: Path, server: FakeVllm) -> None:
    model = load(world)
    server.behave["/v1/models"] = lambda handler: handler.reply(["hello"])
    with pytest.raises(HptError, match="it is not a vLLM server"):
        client_of(world, server.url, model)
    server.behave["/v1/models"] = lambda handler: handler.reply({"detail": "Not Found"}, 404)
    with pytest.raises(HptError, match="404 Not Found: Not Found"):
        client_of(world, server.url, model)


def test_the_key_comes_from_the_environment(
    world: Path, tmp_path: Path, server: FakeVllm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "another")
    assert train(world, tmp_path / "run", server.url) == 2
    error = shown(capsys)
    assert "answered 401" in error
    assert "VLLM_API_KEY must be the same" in error
    assert "another" not in error
    monkeypatch.delenv("VLLM_API_KEY")
    assert train(world, tmp_path / "run", server.url) == 2
    assert "needs the server's key in the environment variable VLLM_API_KEY" in shown(capsys)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_reported_before_a_model_is_loaded(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["rollout.engine=vllm", "model.path=/nowhere", f"output={tmp_path / 'run'}"]
    assert main(["train", str(world), *settings]) == 2
    assert "pip install 'hpt[vllm]'" in shown(capsys)
    # The trainer's side of NCCL is vLLM's, too.
    monkeypatch.setattr(engines, "pick_device", lambda name: torch.device("cuda"))
    assert main(["train", str(world), *settings, "rollout.vllm.url=http://there"]) == 2
    error = shown(capsys)
    assert 'rollout.vllm.weight_transfer "nccl"' in error
    assert "pip install 'hpt[vllm]'" in error


def test_a_transfer_between_gpus_is_refused_on_a_cpu(world: Path, server: FakeVllm) -> None:
    with pytest.raises(ConfigError, match=r'"ipc" is between GPUs; on a CPU use auto or gloo'):
        client_of(world, server.url, load(world), "rollout.vllm.weight_transfer=ipc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rollout.top_p=0.9", "rollout.temperature=0.7"], "rollout.top_p"),
        (["rollout.vllm.adapters=lora"], "needs model.lora"),
        (["rollout.vllm.tensor_parallel=2"], "engine=deepspeed, or a server"),
    ],
)
def test_settings_that_vllm_does_not_support_are_named(world: Path, settings: list[str], message: str) -> None:
    load_config(world, settings)  # the transformers engine supports or ignores them
    with pytest.raises(ConfigError, match=message):
        load_config(world, ["rollout.engine=vllm", *settings])


@pytest.mark.parametrize(
    "setting",
    ["rollout.vllm.url=http://there:1", "rollout.vllm.quantization=nf4", "rollout.vllm.url=https://[::1]:8/a"],
)
def test_settings_of_vllm_beside_another_engine_are_named(world: Path, setting: str) -> None:
    load_config(world, ["rollout.vllm.wait=9", "rollout.vllm.adapters=lora"])
    name = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf'{name} = .* is read by rollout.engine "vllm" only.*{name}=null'):
        load_config(world, [setting])


@pytest.mark.parametrize(
    "url",
    [
        *("there:1", "ftp://there", "http://", "http://there/?a=1", "http://there:abc", "http://there:99999"),
        *("http://there:0", "http://[there", "http://the re:1", "http://:8000"),
    ],
)
def test_a_url_that_is_none_is_named(world: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.vllm\.url = .*: must be http://HOST:PORT \(or https://\)"):
        load_config(world, [f"rollout.vllm.url={url}"])
