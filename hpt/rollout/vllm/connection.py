"""The trainer's connection to a vLLM server (`hpt.rollout.vllm.server`): requests and the health check."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from transformers import PreTrainedConfig

from hpt.config.schema import Config
from hpt.support.errors import HptError, RolloutError

HEALTH_TIMEOUT = 10.0  # seconds


def identity(model: PreTrainedConfig, config: Config, stop_ids: Sequence[int]) -> dict[str, Any]:
    """What a server and the trainer that uses it must agree on."""
    text = model.get_text_config()
    shape = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")
    names = (*shape, "max_position_embeddings", "rope_parameters")
    return {
        **{name: getattr(text, name, None) for name in names},
        "dtype": config.model.dtype,
        "stop tokens": list(stop_ids),
        "log-probabilities": "before the top-p cut" if config.rollout.top_p < 1 else "at the sampling temperature",
    }


class ServerConnection:
    """The server at `rollout.vllm.url`."""

    def __init__(self, config: Config) -> None:
        self.url = str(config.rollout.vllm.url).rstrip("/")
        self.timeout = config.rollout.vllm.timeout
        self._config = config
        self._opener = build_opener(ProxyHandler({}))  # connects directly, whatever proxy this machine uses

    def check(self, model: PreTrainedConfig, stop_ids: Sequence[int]) -> None:
        """HptError if the server cannot be reached, or does not serve this run's model and settings."""
        with self.request("/health", timeout=HEALTH_TIMEOUT) as answer:
            text = answer.read()
        try:
            health = json.loads(text)
            theirs = health["identity"]
            served_model = health.get("model")
        except (ValueError, KeyError, TypeError) as error:
            raise HptError(f"rollout.vllm.url = {self.url!r} is not a server of hpt.rollout.vllm.server") from error
        for name, ours in identity(model, self._config, stop_ids).items():
            if theirs.get(name) != ours:
                raise HptError(
                    f"rollout.vllm.url = {self.url!r} serves {served_model!r}, another model than model.path = "
                    f"{self._config.model.path!r}: {name} is {theirs.get(name)!r} there and {ours!r} here. Start it "
                    "with this run's recipe: python -m hpt.rollout.vllm.server RECIPE"
                )

    @contextmanager
    def request(self, path: str, body: bytes | None = None, timeout: float | None = None) -> Iterator[IO[bytes]]:
        """The answer to a GET, or to a POST of `body`. RolloutError if there is none in time, or it is an error."""
        if timeout is None:
            timeout = self.timeout
        server = f"rollout.vllm.url = {self.url!r}: the vLLM server"
        try:
            with self._opener.open(Request(self.url + path, data=body), timeout=timeout) as answer:
                yield answer
        except HTTPError as error:
            raise RolloutError(f"{server} failed: {_message_of(error)}") from error
        except (HTTPException, OSError) as error:  # URLError and TimeoutError are OSErrors
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise RolloutError(f"{server} has not answered for {timeout:g} s") from error
            raise RolloutError(
                f"{server} cannot be reached ({reason}). Is it running? "
                "Start it with: python -m hpt.rollout.vllm.server RECIPE"
            ) from error


def _message_of(answer: HTTPError) -> str:
    """The server's own error message, or the HTTP status."""
    try:
        return str(json.load(answer)["error"])
    except (ValueError, KeyError, OSError):
        return str(answer)
