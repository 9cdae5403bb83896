"""A server of rollouts that is killed, stopped, started again or answers garbage: the tests' stand-in for vLLM's."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpt.rollout.vllm.gloo_group import free_port

from .cases import Case, Place, expect
from .processes import Forked, wait_for
from .world import expect_message, expect_same, finish, resume, train

STEP = "rollouts/step-000002.jsonl"
"""The fault comes once this file is there, in step 3."""
GARBAGE = (b"", b"garbage", b"[" * 100_000, b'{"choices": 5}', b'{"data": [{"id": [1]}]}', b"\0" * 5000, b"x" * 300_000)
PATHS = ("/v1/completions", "/weight_info", "/pause", "/start_weight_update", "/update_weights", "/resume", "/health")


def cases() -> list[Case]:
    stops = "a sentence and a checkpoint; bit-equal with a new server"
    goes_on = "the run goes on; bit-equal"
    return [
        Case("server", "killed", stops, partial(_check, fault=_kill, said="cannot be reached|broke off")),
        Case(
            "server", "stopped (SIGSTOP)", stops, partial(_check, fault=_stop, said="hangs: /health has not answered")
        ),
        Case(
            "server",
            "started again, with dummy weights",
            stops,
            partial(_check, fault=_restart, said="has been started again"),
        ),
        Case("server", "killed while the run waits for another", goes_on, _killed_and_waited_for),
        *(Case("server", f"answers {path} with garbage", stops, partial(_garbage, path=path)) for path in PATHS),
    ]


class Server:
    """A fake vLLM server in a process of its own."""

    def __init__(self, place: Place, *, port: int = 0, garbage: tuple[str, bytes, Path] | None = None) -> None:
        self.port = port or free_port("127.0.0.1")
        self.process = Forked(partial(_serve, place.recipe, self.port, garbage))
        wait_for(self._answers, self.process, "the server listens")

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def settings(self) -> list[str]:
        return ["rollout.engine=vllm", f"rollout.vllm.url=http://127.0.0.1:{self.port}", "eval.every=0"]

    def kill(self) -> None:
        with self.process:
            self.process.send(signal.SIGKILL)
            self.process.wait()


def _serve(recipe: Path, port: int, garbage: tuple[str, bytes, Path] | None) -> int:
    from fake_vllm import FakeVllm

    server = FakeVllm(recipe, port)
    if garbage:
        threading.Thread(target=_answer_garbage, args=(server, *garbage), daemon=True).start()
    server.serve_forever(0.02)
    return 0


def _answer_garbage(server: Any, path: str, content: bytes, sign: Path) -> None:
    """Once `sign` is there."""
    while not sign.exists():
        time.sleep(0.005)

    def answer(handler: Any) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    server.behave[path] = answer


def _key() -> None:
    from fake_vllm import KEY

    os.environ["VLLM_API_KEY"] = KEY


def _train(place: Place, server: Server, name: str, settings: Sequence[str] = ()) -> Forked:
    return train(place.recipe, place.folder / name, [*server.settings, *settings], before=_key)


def _reference(place: Place) -> Path:
    server = Server(place)
    finish(_train(place, server, "reference"))
    server.kill()
    return place.folder / "reference"


def _go_on(place: Place, reference: Path) -> None:
    """With a new server, at another port."""
    run = place.folder / "run"
    server = Server(place)
    finish(resume(run, *server.settings[1:2], before=_key))
    server.kill()
    expect_same(run, reference)


def _check(place: Place, *, fault: Callable[[Place, Server], Server], said: str) -> str:
    reference = _reference(place)
    server = Server(place)
    run = place.folder / "run"
    with _train(place, server, "run") as process:
        wait_for((run / STEP).exists, process, "step 2")
        process.send(signal.SIGSTOP)  # it meets the server as the fault has left it
        server = fault(place, server)
        process.send(signal.SIGCONT)
        text = expect_message(process, "the vLLM server", f"continue with: hpt train --resume {run}")
    server.kill()
    expect(any(part in text for part in said.split("|")), f"said: {text[-400:]}")
    _go_on(place, reference)
    return f"{text[text.rindex('the vLLM server') :][:80]} ...; bit-equal"


def _kill(place: Place, server: Server) -> Server:
    server.kill()
    return server


def _stop(place: Place, server: Server) -> Server:
    server.process.send(signal.SIGSTOP)
    return server


def _restart(place: Place, server: Server) -> Server:
    server.kill()
    return Server(place, port=server.port)


def _killed_and_waited_for(place: Place) -> str:
    reference = _reference(place)
    server = Server(place)
    run = place.folder / "run"
    with _train(place, server, "run", ["rollout.vllm.wait=200"]) as process:
        wait_for((run / STEP).exists, process, "step 2")
        server = _restart(place, server)
        finish(process)
    server.kill()
    expect_same(run, reference)
    return "bit-equal"


def _garbage(place: Place, *, path: str) -> str:
    reference = _reference(place)
    run = place.folder / "run"
    content = place.random.choice(GARBAGE)
    server = Server(place, garbage=(path, content, run / STEP))
    with _train(place, server, "run") as process:
        status = process.wait()
        expect(status in (0, 2) and "Traceback" not in process.text, f"status {status}: {process.text[-500:]}")
        text = process.text
    server.kill()
    if status == 0:
        expect_same(run, reference)
        return f"{len(content)} bytes: nothing reads them; bit-equal"
    expect("the vLLM server" in text, f"the server is not named: {text[-400:]}")
    _go_on(place, reference)
    return f"{len(content)} bytes: {text[text.rindex('the vLLM server') :][:80]} ...; bit-equal"
