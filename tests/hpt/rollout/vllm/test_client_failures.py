"""A vLLM server that fails: bad answers, hangs, new starts, and a run that waits; with a stand-in for the server."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import KEY, FakeVllm, Handler, completion
from vllm_clients import PROMPTS, SAMPLING, STOPS, client_of, load, mismatch, serve_another_model, shown, train

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.records.checkpoints import checkpoints
from hpt.records.files import read_metrics
from hpt.rollout import engines
from hpt.rollout.vllm import completions, connection
from hpt.support.errors import HptError, RolloutError

pytestmark = pytest.mark.usefixtures("key_and_quick_looks")


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


def stream(content: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (answering(completion([3, 1], [-1.0, -2.0], "stop"), done=False), "broke off in the middle of an answer"),
        (answering({"error": {"message": "the engine is dead"}}), "failed: the engine is dead; its own output"),
        (lambda handler: handler.reply({"error": {"message": "out of memory"}}, 500), "answered 500 .*: out of memory"),
        (lambda handler: handler.reply({"error": {"message": "too long"}}, 400), "answered 400 .*: too long"),
        (not_json, "gave an answer that is not a completion: 12ab"),
        (stream(b"data: " + b"[" * 100_000 + b"\n"), r"gave an answer that is not a completion: \[\[\["),
        (stream(b"data: " + b"x" * 200_000), "gave an answer that does not end"),
        (answering(*[completion([3], [-1.0], None)] * 8), "does not end; it may have 6 tokens"),
        (answering([1]), "gave an answer that is not a completion"),
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
    world: Path, server: FakeVllm, behave: Callable[[Handler], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "LONGEST_ANSWER", 150_000)
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
        for _ in range(20):
            time.sleep(0.1)
            send(completion([], [], None))


def stop_in_the_middle(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "10")
    handler.end_headers()
    handler.wfile.write(b"{")
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
        ("/resume", stop_in_the_middle, r"broke off at /resume \(timed out\)"),
    ],
)
def test_a_server_that_is_well_and_does_nothing_is_named_after_the_timeout(
    world: Path, server: FakeVllm, path: str, behave: Callable[[Handler], None], message: str
) -> None:
    client = client_of(world, server.url, load(world), "rollout.vllm.timeout=0.5")
    server.behave[path] = behave
    with pytest.raises(RolloutError, match=message):
        client.generate(PROMPTS, SAMPLING, 3)


@pytest.mark.parametrize(
    ("path", "garbage"),
    [
        ("/v1/models", ["abc", 5, [], None, {"data": [{"id": [1]}]}, "x" * 9999]),
        ("/server_info", ["abc", 5, [], None, {"vllm_config": {"model_config": 1}}, "x" * 9999]),
        ("/weight_info", ["abc", 5, [], None, "x" * 9999]),
        ("/get_world_size", ["abc", 5, [], None, {"world_size": "x"}, {"world_size": 0}, "x" * 9999]),
    ],
)
def test_a_server_that_answers_garbage_is_named(
    world: Path, server: FakeVllm, path: str, garbage: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LONGEST_ANSWER", 5000)
    model = load(world)
    for content in garbage:
        client = client_of(world, server.url, model) if path in ("/weight_info", "/get_world_size") else None
        server.behave[path] = lambda handler, content=content: handler.reply(content)  # type: ignore[misc]
        with pytest.raises(HptError, match=f"rollout.vllm.url = '{server.url}': the vLLM server ") as caught:
            (client or client_of(world, server.url, model)).generate(PROMPTS, SAMPLING, 3)
        assert len(str(caught.value)) < 700


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
