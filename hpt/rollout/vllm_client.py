"""Rollouts by a vLLM server (`hpt.rollout.vllm_server`): weights and token ids over HTTP, never waiting for ever."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import torch
import torch.distributed as dist
from safetensors.torch import save
from transformers import PreTrainedConfig

from hpt.config.schema import Config
from hpt.rollout.engine import OnRollout, Rollout, RolloutEngine, Sampling
from hpt.support.errors import HptError, RolloutError

PART_BYTES = 256 << 20
"""Size of a part of the weights on its way; a larger tensor is a part of its own."""

HEALTH_TIMEOUT = 10.0


def identity(model: PreTrainedConfig, config: Config, stop_ids: Sequence[int]) -> dict[str, Any]:
    """What must be the same of a server and of the trainer that it serves."""
    text = model.get_text_config()
    names = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")
    return {
        **{name: getattr(text, name, None) for name in names},
        "dtype": config.model.dtype,
        "stop tokens": list(stop_ids),
        "log-probabilities": "before the top-p cut" if config.rollout.top_p < 1 else "at the sampling temperature",
    }


class VllmClient(RolloutEngine):
    """The server at `rollout.vllm.url`. HptError where it is not there or serves something else.

    weights: gives the policy's weights as they are now, under the names of a checkpoint. Of several ranks the first
    sends them; all must call `generate` as often.
    """

    def __init__(
        self,
        config: Config,
        weights: Callable[[], Iterable[tuple[str, torch.Tensor]]],
        model: PreTrainedConfig,
        stop_ids: Sequence[int],
    ) -> None:
        self._url = str(config.rollout.vllm.url).rstrip("/")
        self._timeout = config.rollout.vllm.timeout
        self._weights = weights
        self._version: str | None = None
        # A proxy of the machine's has no business between the two.
        self._opener = build_opener(ProxyHandler({}))
        with self._request("/health", timeout=HEALTH_TIMEOUT) as answer:
            text = answer.read()
        try:
            served = json.loads(text)
            theirs = served["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise HptError(f"rollout.vllm.url = {self._url!r} is no server of hpt.rollout.vllm_server") from error
        own = identity(model, config, stop_ids)
        if different := [name for name, value in own.items() if theirs.get(name) != value]:
            name = different[0]
            raise HptError(
                f"rollout.vllm.url = {self._url!r} serves {served.get('model')!r}, another model than model.path = "
                f"{config.model.path!r}: {name} is {theirs.get(name)!r} there and {own[name]!r} here. Start it with "
                "this run's recipe: python -m hpt.rollout.vllm_server RECIPE"
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        if self._version is None:
            self._push()
        rollouts: list[list[Rollout | None]] = [[None] * sampling.n for _ in prompts]
        request = {
            "prompts": [list(prompt) for prompt in prompts],
            "sampling": vars(sampling),
            "seed": seed,
            "version": self._version,
        }
        with self._request("/generate", json.dumps(request).encode()) as answer:
            for line in self._lines(answer):
                index, place = line.pop("index"), line.pop("place")
                rollouts[index][place] = rollout = Rollout(**line)
                if on_rollout:
                    on_rollout(index, place, rollout)
        return [[rollout for rollout in group if rollout] for group in rollouts]

    def weights_changed(self) -> None:
        self._version = None

    def _lines(self, answer: IO[bytes]) -> Iterator[dict[str, Any]]:
        """The rollouts of an answer. RolloutError where it breaks off, or the server does nothing for too long."""
        steps, moved = -1, time.monotonic()
        for text in answer:
            if not text.endswith(b"\n"):
                break
            line = json.loads(text)
            if "error" in line:
                raise RolloutError(f"the vLLM server at {self._url} failed: {line['error']}")
            if "done" in line:
                return
            if line.get("alive") != steps:  # a rollout, or a step towards one
                steps, moved = line.get("alive", steps), time.monotonic()
            if time.monotonic() - moved > self._timeout:
                raise RolloutError(f"the vLLM server at {self._url} has made no progress for {self._timeout:g} s")
            if "alive" not in line:
                yield line
        raise RolloutError(f"the vLLM server at {self._url} ended in the middle of an answer; its own output says why")

    def _push(self) -> None:
        """Sends the weights. All ranks learn whether that went well, and all go through the weights, which may be
        gathered from them."""
        connected = dist.is_initialized() and dist.get_world_size() > 1
        outcome: list[Any] = [uuid.uuid4().hex, None]
        weights = iter(self._weights())
        if not connected or dist.get_rank() == 0:
            try:
                self._send(outcome[0], weights)
            except RolloutError as error:
                outcome[1] = str(error)
        for _ in weights:
            pass
        if connected:
            dist.broadcast_object_list(outcome)
        if outcome[1]:
            raise RolloutError(outcome[1])
        self._version = outcome[0]

    def _send(self, version: str, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        part: dict[str, torch.Tensor] = {}
        size = 0
        for name, tensor in weights:
            if part and size + tensor.nbytes > PART_BYTES:
                self._send_part(version, part, last=False)
                part, size = {}, 0
            part[name] = tensor.detach().to("cpu", copy=True).contiguous()
            size += tensor.nbytes
        self._send_part(version, part, last=True)

    def _send_part(self, version: str, part: dict[str, torch.Tensor], *, last: bool) -> None:
        with self._request(f"/weights?version={version}&last={int(last)}", save(part)) as answer:
            answer.read()

    @contextmanager
    def _request(self, path: str, body: bytes | None = None, timeout: float | None = None) -> Iterator[IO[bytes]]:
        """The answer to a GET, or to a POST of `body`. RolloutError where none comes, or one that says so."""
        request = Request(self._url + path, data=body)
        timeout = timeout or self._timeout
        where = f"rollout.vllm.url = {self._url!r}: the vLLM server"
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                yield answer
        except HTTPError as error:
            raise RolloutError(f"{where} failed: {_error_of(error)}") from error
        except (HTTPException, OSError) as error:  # URLError and TimeoutError are OSErrors
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise RolloutError(f"{where} has not answered for {timeout:g} s") from error
            raise RolloutError(
                f"{where} cannot be reached ({reason}). Is it running? "
                "Start it with: python -m hpt.rollout.vllm_server RECIPE"
            ) from error


def _error_of(answer: HTTPError) -> str:
    try:
        return str(json.load(answer)["error"])
    except (ValueError, KeyError, OSError):
        return str(answer)
