"""Client and server of rollouts, with the transformers engine in place of vLLM: these tests run without vLLM."""

from __future__ import annotations

import importlib.util
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.records.checkpoints import checkpoints
from hpt.records.files import read_metrics
from hpt.rollout import Rollout, Sampling, TransformersEngine, vllm_client, vllm_server
from hpt.rollout.vllm.client import VllmClient
from hpt.rollout.vllm.connection import identity
from hpt.rollout.vllm.server import HttpServer, RolloutServer
from hpt.rollout.weights import GetWeights, named_weights
from hpt.support.errors import ConfigError, HptError, RolloutError

PROMPTS = [[5, 6, 7], [8], [9, 10, 11]]
STOPS = [1]  # the end token of the world's tokenizer
SAMPLING = Sampling(n=2, max_tokens=6)


class StandInEngine(TransformersEngine):
    """Stands in for VllmEngine: a second model, which loads the weights that the server was sent."""

    steps = 0

    def __init__(self, model: PreTrainedModel, weights: GetWeights) -> None:
        super().__init__(model, stop_ids=STOPS, batch_size=4)
        self._weights = weights

    def load_weights(self) -> None:
        self.model.load_state_dict(dict(self._weights()), strict=True)


def load(world: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(world.parent / "model", dtype=torch.float32)


@contextmanager
def listening(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def rollouts(world: Path) -> RolloutServer:
    model = load(world)
    description = {"model": "the world's", "identity": identity(model.config, load_config(world), STOPS)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    return RolloutServer(partial(StandInEngine, model), description)  # type: ignore[arg-type]


@pytest.fixture
def url(rollouts: RolloutServer) -> Iterator[str]:
    with listening(HttpServer(("127.0.0.1", 0), rollouts)) as url:
        yield url


def client_of(world: Path, url: str, model: PreTrainedModel, *settings: str) -> VllmClient:
    config = load_config(world, ["rollout.engine=vllm", f"rollout.vllm.url={url}", *settings])
    return VllmClient(config, partial(named_weights, model), model.config, STOPS)


def perturb(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_rollouts_are_sampled_from_the_policys_current_weights(
    world: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_client, "PART_BYTES", 5_000)  # so that a weight update takes several parts
    model = load(world)
    client = client_of(world, url, model)
    local = TransformersEngine(model, stop_ids=STOPS, batch_size=4)
    seen: dict[tuple[int, int], Rollout] = {}

    def remember(index: int, place: int, rollout: Rollout) -> None:
        seen[index, place] = rollout

    for _ in range(3):
        seen.clear()
        found = client.generate(PROMPTS, SAMPLING, 3, on_rollout=remember)
        assert found == local.generate(PROMPTS, SAMPLING, 3)
        assert seen == {(i, j): rollout for i, group in enumerate(found) for j, rollout in enumerate(group)}
        perturb(model)
        assert client.generate(PROMPTS, SAMPLING, 3) == found  # the server still has the old ones
        client.weights_changed()


def test_half_a_weight_update_changes_nothing(world: Path, url: str, rollouts: RolloutServer) -> None:
    model = load(world)
    client = client_of(world, url, model)
    before = client.generate(PROMPTS, SAMPLING, 3)
    rollouts.receive("another", {name: tensor * 0 for name, tensor in list(named_weights(model))[:3]}, last=False)
    assert client.generate(PROMPTS, SAMPLING, 3) == before


def test_a_run_with_a_server_equals_the_run_without_one(
    world: Path, url: str, tmp_path: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    local, served = tmp_path / "local", tmp_path / "served"
    # The same batch size as on the server, since rounding depends on it.
    assert main(["train", str(world), f"output={local}", "rollout.batch_size=4"]) == 0
    assert main(["train", str(world), f"output={served}", "rollout.engine=vllm", f"rollout.vllm.url={url}"]) == 0
    assert metrics_of(served) == metrics_of(local)


def test_two_runs_cannot_share_a_server(world: Path, url: str) -> None:
    model = load(world)
    one, other = client_of(world, url, model), client_of(world, url, model)
    one.generate(PROMPTS, SAMPLING, 3)
    other.generate(PROMPTS, SAMPLING, 3)
    with pytest.raises(RolloutError, match="does another run use it"):
        one.generate(PROMPTS, SAMPLING, 3)


def test_a_server_of_another_model_is_refused_before_a_model_is_loaded(
    world: Path, tmp_path: Path, rollouts: RolloutServer, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts.description["identity"]["vocab_size"] = 151_936
    settings = [f"output={tmp_path / 'run'}", "rollout.engine=vllm", f"rollout.vllm.url={url}"]
    assert main(["train", str(world), *settings]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "another model" in error
    assert "vocab_size is 151936 there and 24 here" in error
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("setting", ["rollout.top_p=0.9", "model.dtype=bfloat16"])
def test_a_server_with_other_settings_is_refused(world: Path, url: str, setting: str) -> None:
    with pytest.raises(HptError, match="another model"):
        client_of(world, url, load(world), setting)


def test_an_unreachable_server_is_reported_before_a_model_is_loaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        settings = [f"output={tmp_path / 'run'}", "rollout.engine=vllm", f"rollout.vllm.url={url}"]
        assert main(["train", str(world), *settings]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"rollout.vllm.url = '{url}': the vLLM server cannot be reached" in error
    assert "python -m hpt.rollout.vllm.server" in error


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_a_missing_vllm_is_reported_before_a_model_is_loaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["rollout.engine=vllm", "model.path=/nowhere", f"output={tmp_path / 'run'}"]
    assert main(["train", str(world), *settings]) == 2
    assert "pip install 'hpt[vllm]'" in " ".join(capsys.readouterr().err.split())


def test_an_engine_failure_on_the_server_is_reported(world: Path, url: str, rollouts: RolloutServer) -> None:
    client = client_of(world, url, load(world))
    rollouts._engine._weights = lambda: [("no.such.weight", torch.ones(1))]
    with pytest.raises(RolloutError, match=r"no\.such\.weight"):
        client.generate(PROMPTS, SAMPLING, 3)


class Script(BaseHTTPRequestHandler):
    """A server that accepts weights, and answers /generate by `server.fail`."""

    server: Any

    def do_GET(self) -> None:
        self.reply(json.dumps(self.server.description).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/weights"):
            self.reply(b"{}")
        else:
            self.send_response(200)
            self.end_headers()
            self.server.fail(self.wfile)

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def break_off(out: Any) -> None:
    out.write(b'{"index": 0, "place": 0, "tokens": [1], "logprobs": [-1.0], "finish_reason": "stop"}\n{"ind')


def stay_silent(out: Any) -> None:
    out.write(b'{"alive": 0}\n')
    out.flush()
    time.sleep(3)


def make_no_progress(out: Any) -> None:
    for _ in range(40):
        out.write(b'{"alive": 7}\n')
        out.flush()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (break_off, "ended in the middle of an answer"),
        (stay_silent, "has not answered for 0.5 s"),
        (make_no_progress, "has made no progress for 0.5 s"),
    ],
)
def test_the_client_never_hangs(world: Path, fail: Callable[[Any], None], message: str) -> None:
    model = load(world)
    script = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    script.daemon_threads = True
    script.fail = fail  # type: ignore[attr-defined]
    script.description = {"identity": identity(model.config, load_config(world), STOPS)}  # type: ignore[attr-defined]
    with listening(script) as url:
        client = client_of(world, url, model, "rollout.vllm.timeout=0.5")
        began = time.monotonic()
        with pytest.raises(RolloutError, match=message):
            client.generate(PROMPTS, SAMPLING, 3)
        assert time.monotonic() - began < 10


def test_another_web_server_is_refused(world: Path) -> None:
    script = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    script.description = ["hello"]  # type: ignore[attr-defined]
    with listening(script) as url, pytest.raises(HptError, match=r"is not a server of hpt.rollout.vllm.server"):
        client_of(world, url, load(world))


def test_heartbeats_keep_a_slow_answer_from_timing_out(
    world: Path, url: str, rollouts: RolloutServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "HEARTBEAT_SECONDS", 0.1)
    client = client_of(world, url, load(world), "rollout.vllm.timeout=1")
    client.generate(PROMPTS, SAMPLING, 3)
    sample = TransformersEngine._sample

    def slow(self: Any, *arguments: Any) -> Any:
        for _ in range(30):  # 3 s, three times the timeout
            time.sleep(0.1)
            self.steps += 1
        return sample(self, *arguments)

    monkeypatch.setattr(StandInEngine, "_sample", slow)
    assert len(client.generate(PROMPTS[:1], SAMPLING, 3)[0]) == 2


def test_a_server_that_dies_stops_the_run_with_a_checkpoint(
    world: Path, tmp_path: Path, url: str, rollouts: RolloutServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    generate, calls = rollouts.generate, []

    def dies_in_step_3(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        calls.append(1)
        for line in generate(request):
            if len(calls) == 3:
                return  # in the middle of an answer
            yield line

    rollouts.generate = dies_in_step_3  # type: ignore[method-assign]
    settings = [f"output={run}", "eval.every=0", "checkpoint.every=0", "rollout.engine=vllm"]
    assert main(["train", str(world), *settings, f"rollout.vllm.url={url}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "ended in the middle of an answer" in error
    assert f"Stopped after step 2; continue with: hpt train --resume {run}" in error
    assert [path.name for path in checkpoints(run)] == ["step-000002"]
    assert [line["step"] for line in read_metrics(run)] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rollout.top_p=0.9", "rollout.temperature=0.7"], "rollout.top_p"),
        (["rollout.vllm.adapters=lora"], "needs model.lora"),
        (["rollout.vllm.tensor_parallel=2"], "engine=deepspeed, or a server"),
        (["rollout.vllm.adapters=lora", "model.lora={rank: 4}", "rollout.vllm.url=http://there:1"], "merged"),
    ],
)
def test_settings_that_vllm_does_not_support_are_named(world: Path, settings: list[str], message: str) -> None:
    load_config(world, settings)  # the transformers engine supports or ignores them
    with pytest.raises(ConfigError, match=message):
        load_config(world, ["rollout.engine=vllm", *settings])
