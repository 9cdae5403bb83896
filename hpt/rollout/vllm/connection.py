"""The trainer's connection to a vLLM server: requests, and the errors that name what is wrong with the server."""

from __future__ import annotations

import json
import selectors
import time
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from hpt.config.schema import Config
from hpt.rollout.vllm.guard import KEY_VARIABLE, read_key
from hpt.support.errors import ConfigError, HptError, RolloutError

CONNECT_SECONDS = 5.0
PROBE_SECONDS = 5.0
"""Time between questions after the server's health while an answer is awaited."""
HEALTH_SECONDS = 10.0
"""Time in which a server that is well says so, however busy its engine is."""

LONGEST_ANSWER = 16 << 20
"""Bytes of an answer, or of a line of one that is streamed."""

DUMMY_WEIGHTS = "default"
"""vLLM's name for the version of the weights that it started with."""


class ServerLost(RolloutError):
    """The server is dead, hung, or no longer has the policy's weights: one that is started again can go on."""


class ServerConnection:
    """The server at `rollout.vllm.url`. ConfigError if the key is missing or cannot be used."""

    def __init__(self, config: Config) -> None:
        self.url = str(config.rollout.vllm.url).rstrip("/")
        self.timeout = config.rollout.vllm.timeout
        parts = urlsplit(self.url)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self._path = parts.path
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        key = read_key()
        if key is None:
            raise ConfigError(
                f"rollout.vllm.url = {self.url!r} needs the server's key in the environment variable {KEY_VARIABLE}; "
                "hpt serve prints one where none is set"
            )
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def get(self, path: str) -> Any:
        """The JSON that a GET answers."""
        return self._exchange("GET", path, None)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that a POST answers."""
        return self._exchange("POST", path, body or {})

    def connect(self) -> HTTPConnection:
        """An open connection without a time limit of its own. ServerLost if there is none."""
        connection = self._kind(self.host, self.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
        except OSError as error:
            raise self.lost(f"cannot be reached ({error}). Is it running? Start it with: hpt serve RECIPE") from error
        connection.sock.settimeout(None)
        return connection

    def send(self, connection: HTTPConnection, method: str, path: str, body: dict[str, Any] | None) -> None:
        """Sends a request. OSError if the connection is gone."""
        content = None if body is None else json.dumps(body)
        connection.request(method, self._path + path, content, self._headers)

    def check_status(self, answer: HTTPResponse) -> None:
        """Raises what an answer other than 200 means: ServerLost for a failure that a new start may mend."""
        if answer.status == 200:
            return
        message = f"answered {answer.status} {answer.reason}: {stated_reason(answer.read(10_000))}"
        if answer.status in (401, 403):
            raise HptError(f"{self} {message}. {KEY_VARIABLE} must be the same here and where the server was started")
        if answer.status == 404:
            raise HptError(f"{self} {message}. It is not a vLLM server that was started by: hpt serve RECIPE")
        raise self.lost(message) if answer.status >= 500 else RolloutError(f"{self} {message}")

    def probe(self) -> None:
        """ServerLost unless the server says within `HEALTH_SECONDS` that it is well."""
        connection = self.connect()
        try:
            connection.sock.settimeout(HEALTH_SECONDS)
            self.send(connection, "GET", "/health", None)
            answer = connection.getresponse()
            if answer.status != 200:
                raise self.lost(f"is not well: /health answered {answer.status} {answer.reason}; its output says why")
        except TimeoutError as error:
            raise self.lost(f"hangs: /health has not answered for {HEALTH_SECONDS:g} s") from error
        except (HTTPException, OSError) as error:
            raise self.lost(f"broke off ({_in_words(error)}); its own output says why") from error
        finally:
            connection.close()

    def weight_version(self) -> str:
        """Which weights the server has, as the last finished update named them."""
        return str(self._entry(self.get("/weight_info"), "weight_version"))

    def confirm_version(self, version: str) -> None:
        """RolloutError unless the server has these weights: ServerLost if it was started again since they were sent."""
        found = self.weight_version()
        if found == DUMMY_WEIGHTS:
            raise self.lost("has been started again since it got the policy's weights: it has dummy weights now")
        if found != version:
            raise RolloutError(f"{self} has the weights {found!r}, not {version!r}: does another run use it?")

    def world_size(self) -> int:
        """The server's worker processes, each of which receives all weights."""
        size = self._entry(self.get("/get_world_size"), "world_size")
        if not isinstance(size, int) or size < 1:
            raise HptError(f"{self} says that its world_size is {str(size)[:80]!r}, which is no number of processes")
        return size

    def lost(self, what: str) -> ServerLost:
        return ServerLost(f"{self} {what}")

    def __str__(self) -> str:
        return f"rollout.vllm.url = {self.url!r}: the vLLM server"

    def _entry(self, answer: Any, name: str) -> Any:
        try:
            return answer[name]
        except (KeyError, TypeError) as error:
            raise HptError(f"{self} answers {str(answer)[:200]}, which is not vLLM's: {name} is missing") from error

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        connection = self.connect()
        try:
            connection.sock.settimeout(self.timeout)  # an answer that begins may still never end
            self.send(connection, method, path, body)
            self._await_answer(connection)
            answer = connection.getresponse()
            self.check_status(answer)
            content = answer.read(LONGEST_ANSWER + 1)
        except (HTTPException, OSError) as error:
            raise self.lost(f"broke off at {path} ({_in_words(error)}); its own output says why") from error
        finally:
            connection.close()
        if len(content) > LONGEST_ANSWER:
            raise HptError(f"{self} answers {path} with more than {LONGEST_ANSWER:,} bytes: it is not a vLLM server")
        try:
            return json.loads(content) if content else None
        except (ValueError, RecursionError) as error:
            raise HptError(f"{self} answers {path} with {content[:80]!r}, which is not JSON") from error

    def _await_answer(self, connection: HTTPConnection) -> None:
        """Waits until the answer begins. ServerLost if the server is not well meanwhile, or after `timeout`."""
        began = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(connection.sock, selectors.EVENT_READ)
            while not selector.select(min(PROBE_SECONDS, self.timeout)):
                if time.monotonic() - began >= self.timeout:
                    raise self.lost(f"has not answered for {self.timeout:g} s")
                self.probe()


def stated_reason(body: bytes) -> str:
    """vLLM's own words in an answer that reports an error."""
    try:
        content = json.loads(body)
        error = content.get("error", content.get("detail", content))
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return body[:200].decode(errors="replace") or "no reason given"


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__
