"""What stands before vLLM's server: which requests it lets through."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from hpt.rollout.vllm import guard
from hpt.rollout.vllm.guard import MAX_BODY_BYTES, Guard
from hpt.support.errors import ConfigError

KEY = "a-key"
RIGHT = {"authorization": f"Bearer {KEY}"}


def ask(path: str, headers: dict[str, str], kind: str = "http") -> tuple[list[dict[str, Any]], list[str]]:
    """The messages that a request is answered with, and the paths that reached the server behind the guard."""
    sent: list[dict[str, Any]] = []
    reached: list[str] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        reached.append(scope.get("path", scope["type"]))

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    scope = {"type": kind, "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    asyncio.run(Guard(app)(scope, receive, send))
    return sent, reached


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard.KEY_VARIABLE, KEY)


@pytest.mark.parametrize("path", ["/v1/completions", "/update_weights", "/collective_rpc", "/", "/health/../pause"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": KEY}, {"authorization": "Bearer"}, {"authorization": f"Bearer {KEY}x"}],
)
def test_every_path_but_health_needs_the_key(path: str, headers: dict[str, str]) -> None:
    sent, reached = ask(path, headers)
    assert sent[0]["status"] == 401
    assert "VLLM_API_KEY" in json.loads(sent[1]["body"])["error"]["message"]
    assert not reached
    assert ask(path, RIGHT) == ([], [path])


def test_health_needs_no_key() -> None:
    assert ask("/health", {}) == ([], ["/health"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://elsewhere"}, 403),
        ({"content-length": str(MAX_BODY_BYTES + 1)}, 413),
        ({"transfer-encoding": "chunked"}, 411),
        ({"content-length": "-1"}, 400),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/update_weights"])
def test_browsers_and_bodies_without_bound_are_refused_even_with_the_key(
    path: str, headers: dict[str, str], status: int
) -> None:
    sent, reached = ask(path, RIGHT | headers)
    assert sent[0]["status"] == status
    assert not reached


def test_a_body_of_the_largest_size_is_let_through() -> None:
    assert ask("/update_weights", RIGHT | {"content-length": str(MAX_BODY_BYTES)})[1] == ["/update_weights"]


def test_websockets_are_closed_and_the_servers_own_events_pass() -> None:
    sent, reached = ask("/v1/realtime", RIGHT, kind="websocket")
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert not reached
    assert ask("", {}, kind="lifespan")[1] == [""]


@pytest.mark.parametrize("value", ["sesame\n", "open sesame", "sésame", "\tsesame"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard.KEY_VARIABLE, value)
    with pytest.raises(ConfigError, match="VLLM_API_KEY must hold printable ASCII without spaces") as caught:
        ask("/health", {})
    assert "same" not in str(caught.value)


@pytest.mark.parametrize("value", ["", None])
def test_without_a_key_there_is_no_server(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(guard.KEY_VARIABLE)
    if value is not None:
        monkeypatch.setenv(guard.KEY_VARIABLE, value)
    with pytest.raises(RuntimeError, match="VLLM_API_KEY"):
        ask("/health", {})
