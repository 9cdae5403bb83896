"""Rollouts and weight updates over a vLLM server, with a stand-in for the server: these tests run without vLLM."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_vllm import KEY, FakeVllm, Handler, completion, listening
from transformers import AutoModelForCausalLM, PreTrainedModel

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.records.checkpoints import checkpoints
from hpt.records.files import read_metrics
from hpt.rollout import Rollout, Sampling, engines
from hpt.rollout.vllm import completions, connection, senders, waiting
from hpt.rollout.vllm.client import VllmClient
from hpt.rollout.vllm.transfer import UPDATING
from hpt.rollout.weights import named_weights
from hpt.support.errors import ConfigError, HptError, RolloutError

PROMPTS = [[5, 6, 7], [8], [9, 10, 11]]
STOPS = [1]  # the end token of the world's tokenizer
SAMPLING = Sampling(n=2, max_tokens=6)


@pytest.fixture(autouse=True)
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


def load(world: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(world.parent / "model", dtype=torch.float32)


def client_of(world: Path, url: str, model: PreTrainedModel, *settings: str) -> VllmClient:
    config = load_config(world, ["rollout.engine=vllm", f"rollout.vllm.url={url}", *settings])
    return VllmClient(
        config,
        partial(named_weights, model),
        stop_ids=STOPS,
        vocabulary=model.config.vocab_size,
        device=torch.device("cpu"),
        longest_prompt=3,
    )


def perturb(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def mismatch(model: PreTrainedModel, groups: list[list[Rollout]]) -> float:
    """Largest difference between the rollouts' log-probabilities and the model's."""
    worst = 0.0
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + rollout.tokens])).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, torch.tensor(rollout.tokens)[:, None])[:, 0]
            worst = max(worst, (expected - torch.tensor(rollout.logprobs)).abs().max().item())
    return worst


def train(world: Path, run: Path, url: str, *settings: str) -> int:
    fixed = [f"output={run}", "eval.every=0", "checkpoint.every=0", "rollout.engine=vllm", f"rollout.vllm.url={url}"]
    return main(["train", str(world), *fixed, *settings])


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


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


def serve_another_model(server: FakeVllm) -> None:
    server.name = "hpt-0123456789abcdef"


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


def answering(*parts: Any, done: bool = True) -> Callable[[Handler], None]:
    """A completion of these parts, which ends without [DONE] unless it is `done`."""

    def answer(handler: Handler) -> None:
        events = handler.events()
        send = events.__enter__()
        for part in parts:
            send(part)
        if done:
            events.__exit__(None, None, None)

    return answer


def not_json(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10")
    handler.end_headers()
    handler.wfile.write(b"data: 12ab")


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (answering(completion([3, 1], [-1.0, -2.0], "stop"), done=False), "broke off in the middle of an answer"),
        (answering({"error": {"message": "the engine is dead"}}), "failed: the engine is dead; its own output"),
        (lambda handler: handler.reply({"error": {"message": "out of memory"}}, 500), "answered 500 .*: out of memory"),
        (lambda handler: handler.reply({"error": {"message": "too long"}}, 400), "answered 400 .*: too long"),
        (not_json, "gave an answer that is not a completion: 12ab"),
        (answering({"choices": []}), "gave an answer that is not a completion"),
        (answering(completion([], [], "abort")), "aborted a response.*does another run use it"),
        (answering(completion([3, 1], [-1.0], "stop")), "2 tokens and 1 log-probabilities"),
        (answering(completion([3, 1], [-1.0, float("nan")], "stop")), "nan is not a log-probability"),
        (answering(completion([3, 1], [-1.0, None], "stop")), "None is not a log-probability"),
        (answering(completion([3, 1], [-1.0, 0.5], "stop")), "0.5 is not a log-probability"),
        (answering(completion([24, 1], [-1.0, -1.0], "stop")), "24 is not a token of the model's 24"),
        (answering(completion(["3", 1], [-1.0, -1.0], "stop")), "'3' is not a token"),
        (answering(completion([3, 4], [-1.0, -1.0], "stop")), r"stopped at \[4\], and the stop tokens are \[1\]"),
        (answering(completion([3, 4], [-1.0, -1.0], "length")), "cut after 2 tokens, and the limit is 6"),
        (answering(completion([3, 4], [-1.0, -1.0], None)), "finish reason None"),
    ],
)
def test_an_answer_that_is_not_a_whole_response_is_named_and_never_used(
    world: Path, server: FakeVllm, behave: Callable[[Handler], None], message: str
) -> None:
    client = client_of(world, server.url, load(world))
    server.behave["/v1/completions"] = behave
    used: list[Any] = []
    with pytest.raises(RolloutError, match=message) as caught:
        client.generate(PROMPTS, SAMPLING, 3, on_rollout=lambda *rollout: used.append(rollout))
    assert server.url in str(caught.value)
    assert not used


def hang(handler: Handler) -> None:
    time.sleep(2)


def make_no_progress(handler: Handler) -> None:
    with handler.events() as send:
        send(completion([3], [-1.0], None))
        time.sleep(2)


@pytest.mark.parametrize("path", ["/v1/completions", "/pause", "/update_weights"])
def test_a_server_that_hangs_is_named_within_seconds(world: Path, server: FakeVllm, path: str) -> None:
    client = client_of(world, server.url, load(world))
    server.behave |= {path: hang, "/health": hang}
    began = time.monotonic()
    with pytest.raises(RolloutError, match=r"hangs: /health has not answered for 0.3 s"):
        client.generate(PROMPTS, SAMPLING, 3)
    assert time.monotonic() - began < 2  # the limit without progress is 300 s


@pytest.mark.parametrize(
    ("path", "behave", "message"),
    [
        ("/v1/completions", make_no_progress, "has made no progress for 0.5 s"),
        ("/resume", hang, "has not answered for"),
    ],
)
def test_a_server_that_is_well_and_does_nothing_is_named_after_the_timeout(
    world: Path, server: FakeVllm, path: str, behave: Callable[[Handler], None], message: str
) -> None:
    client = client_of(world, server.url, load(world), "rollout.vllm.timeout=0.5")
    server.behave[path] = behave
    with pytest.raises(RolloutError, match=message):
        client.generate(PROMPTS, SAMPLING, 3)


def test_a_slow_server_that_makes_progress_is_waited_for(world: Path, server: FakeVllm) -> None:
    model = load(world)
    client = client_of(world, server.url, model, "rollout.vllm.timeout=0.5")
    sample = server.sample

    def slowly(request: dict[str, Any]) -> Any:
        for part in sample(request):
            time.sleep(0.2)
            yield part

    server.sample = slowly  # type: ignore[method-assign]
    assert mismatch(model, client.generate(PROMPTS, SAMPLING, 3)) < 1e-5


def test_a_server_that_was_started_again_is_named(world: Path, server: FakeVllm) -> None:
    model = load(world)
    client = client_of(world, server.url, model)
    for _ in range(2):
        client.generate(PROMPTS, SAMPLING, 3)
        server.start_again()
        with pytest.raises(RolloutError, match="has been started again"):
            client.generate(PROMPTS, SAMPLING, 3)
        client.weights_changed()
    client.generate(PROMPTS, SAMPLING, 3)
    server.start_again()
    client.weights_changed()
    with pytest.raises(RolloutError, match="has been started again"):
        client.generate(PROMPTS, SAMPLING, 3)


def test_a_run_that_waits_goes_on_with_a_server_that_was_started_again(world: Path, server: FakeVllm) -> None:
    model = load(world)
    unbroken = client_of(world, server.url, model).generate(PROMPTS, SAMPLING, 3)
    client = client_of(world, server.url, model, "rollout.vllm.wait=20")
    sample, calls = server.sample, []

    def fails_once(request: dict[str, Any]) -> Any:
        calls.append(request["seed"])
        if len(calls) == 3:
            server.start_again()  # in the middle of the step, with dummy weights
            raise ConnectionError
        return sample(request)

    server.sample = fails_once  # type: ignore[method-assign]
    seen: list[tuple[int, int]] = []
    groups = client.generate(PROMPTS, SAMPLING, 3, on_rollout=lambda index, place, _: seen.append((index, place)))
    assert groups == unbroken
    assert sorted(seen) == [(index, place) for index in range(3) for place in range(2)]  # each once


def test_a_run_waits_for_a_server_that_is_gone(world: Path, server: FakeVllm) -> None:
    model = load(world)
    client = client_of(world, server.url, model, "rollout.vllm.wait=20")
    groups = client.generate(PROMPTS, SAMPLING, 3)
    server.shutdown()
    server.socket.close()
    back: list[FakeVllm] = []

    def start_another() -> None:
        time.sleep(0.3)
        another = FakeVllm(world, server.server_port)
        back.append(another)
        another.serve_forever(0.02)

    thread = threading.Thread(target=start_another)
    thread.start()
    try:
        assert client.generate(PROMPTS, SAMPLING, 3) == groups
        assert back
    finally:
        thread.join(0.5)
        back[0].shutdown()
        back[0].server_close()
        thread.join()


def test_a_run_waits_for_a_server_that_starts_after_it(
    world: Path, server: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def not_ready_yet(handler: Handler) -> None:
        looks.append(1)
        handler.reply({}, 503 if len(looks) < 3 else 200)

    server.behave["/health"] = not_ready_yet
    with pytest.raises(RolloutError, match="is not well"):
        client_of(world, server.url, load(world))
    settings = ["rollout.engine=vllm", f"rollout.vllm.url={server.url}", "rollout.vllm.wait=20"]
    engines.check_rollout_engine(load_config(world, settings), STOPS)
    assert len(looks) == 3
    looks.clear()
    client_of(world, server.url, load(world), "rollout.vllm.wait=20")
    assert len(looks) == 3


def test_a_run_that_waits_and_is_asked_to_stop_saves_a_checkpoint(
    world: Path, tmp_path: Path, server: FakeVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def is_gone(handler: Handler) -> None:
        if (run / "rollouts" / "step-000001.jsonl").exists():
            os.kill(os.getpid(), signal.SIGTERM)
            handler.reply({}, 503)
        else:
            handler.reply({})

    server.behave["/pause"] = is_gone
    assert train(world, run, server.url, "rollout.vllm.wait=20") == 2
    error = shown(capsys)
    assert "has waited for" not in error
    assert f"Stopped after step 1; continue with: hpt train --resume {run}" in error
    assert [path.name for path in checkpoints(run)] == ["step-000001"]


def test_the_wait_ends(world: Path, server: FakeVllm) -> None:
    client = client_of(world, server.url, load(world), "rollout.vllm.wait=0.3")
    server.behave["/pause"] = lambda handler: handler.reply({}, 503)
    with pytest.raises(RolloutError, match=r"answered 503.*waited for rollout.vllm.wait = 0.3 s"):
        client.generate(PROMPTS, SAMPLING, 3)


def test_a_waiting_run_refuses_a_server_that_came_back_with_another_model(world: Path, server: FakeVllm) -> None:
    client = client_of(world, server.url, load(world), "rollout.vllm.wait=20")
    client.generate(PROMPTS, SAMPLING, 3)
    server.start_again()
    serve_another_model(server)
    with pytest.raises(HptError, match="another model"):
        client.generate(PROMPTS, SAMPLING, 3)


def test_a_server_that_dies_stops_the_run_with_a_checkpoint_from_which_it_resumes(
    world: Path, tmp_path: Path, server: FakeVllm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def dies(handler: Handler) -> None:
        if (run / "rollouts" / "step-000002.jsonl").exists():
            answering(completion([3], [-1.0], None), done=False)(handler)
        else:
            with handler.events() as send:
                for token, logprob, reason in server.sample(handler.body):
                    send(completion([token], [logprob], reason))

    server.behave["/v1/completions"] = dies
    assert train(world, run, server.url) == 2
    error = shown(capsys)
    assert "broke off in the middle of an answer" in error
    assert f"Stopped after step 2; continue with: hpt train --resume {run}" in error
    assert [path.name for path in checkpoints(run)] == ["step-000002"]
    assert KEY not in (run / "config.yaml").read_text()
    server.start_again()
    server.behave.clear()
    assert main(["train", "--resume", str(run)]) == 0
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["rollout/mismatch_tokens"] > 0
        assert abs(line["rollout/mismatch_kl"]) < 1e-6


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
