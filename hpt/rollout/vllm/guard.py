"""What stands before vLLM's server: an ASGI middleware, given to it as `--middleware hpt.rollout.vllm.guard.Guard`.

vLLM's own `--api-key` guards the paths below /v1 and a few others, not those that change the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from secrets import compare_digest
from typing import Any

from hpt.support.errors import ConfigError

KEY_VARIABLE = "VLLM_API_KEY"
"""Environment variable with the key, on both sides; it never stands on a command line."""
MAX_BODY_BYTES = 64 << 20

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def read_key() -> str | None:
    """The key in the environment; None where there is none. ConfigError, which does not show it, for one of no use."""
    key = os.environ.get(KEY_VARIABLE)
    if key and not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"the environment variable {KEY_VARIABLE} must hold printable ASCII without spaces or line breaks"
        )
    return key or None


class Guard:
    """Lets requests with the key through, on every path; /health alone needs none.

    RuntimeError without a key, ConfigError for one that cannot be used.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        key = read_key()
        if key is None:
            raise RuntimeError(f"the environment variable {KEY_VARIABLE} must hold the server's key")
        self._app = app
        self._key = _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing of hpt's needs a websocket
        elif refusal := self._refusal(scope):
            await _answer(send, *refusal)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message for a request that is not let through."""
        headers: dict[bytes, bytes] = dict(scope["headers"])  # names are in lower case
        if b"origin" in headers:
            return 403, "requests of a browser's page are refused"
        if b"transfer-encoding" in headers:
            return 411, "the body's length must be given"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return 400, "the body's length is not a number"
        if int(length) > MAX_BODY_BYTES:
            return 413, f"the body is longer than {MAX_BODY_BYTES} bytes"
        if scope["path"] == "/health":
            return None
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not compare_digest(_digest(key), self._key):
            return 401, f"the key is missing or wrong: Authorization: Bearer, and the server's {KEY_VARIABLE}"
        return None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()  # of one length, so that comparing takes the same time for all keys


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
