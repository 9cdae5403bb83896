"""Rollouts by a vLLM server (`hpt.rollout.vllm.server`), which is sent weights and token ids over HTTP."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import IO, Any

import torch
import torch.distributed as dist
from safetensors.torch import save
from transformers import PreTrainedConfig

from hpt.config.schema import Config
from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.connection import ServerConnection
from hpt.rollout.weights import GetWeights
from hpt.support.errors import RolloutError

PART_BYTES = 256 << 20
"""Weights are sent in parts of at most this size; a larger tensor is a part by itself."""


class VllmClient(RolloutEngine):
    """Samples on the server at `rollout.vllm.url`. HptError if it is absent or serves another model.

    weights: gives the policy's current weights. model: its configuration. With several ranks, `generate` is a
    collective, since rank 0 sends the weights that all ranks gather.
    """

    def __init__(
        self,
        config: Config,
        weights: GetWeights,
        model: PreTrainedConfig,
        stop_ids: Sequence[int],
    ) -> None:
        self._weights = weights
        self._version: str | None = None  # of the weights that the server has; None if they are outdated
        self._server = ServerConnection(config)
        self._server.check(model, stop_ids)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        if self._version is None:
            self._version = self._update_weights()
        rollouts: list[list[Rollout | None]] = [[None] * sampling.n for _ in prompts]
        request = {
            "prompts": [list(prompt) for prompt in prompts],
            "sampling": asdict(sampling),
            "seed": seed,
            "version": self._version,
        }
        with self._server.request("/generate", json.dumps(request).encode()) as answer:
            for line in self._finished(answer):
                index, place = line["index"], line["place"]
                rollout = Rollout(line["tokens"], line["logprobs"], line["finish_reason"])
                rollouts[index][place] = rollout
                if on_rollout:
                    on_rollout(index, place, rollout)
        return [[rollout for rollout in group if rollout] for group in rollouts]

    def weights_changed(self) -> None:
        self._version = None

    def _finished(self, answer: IO[bytes]) -> Iterator[dict[str, Any]]:
        """Yields the finished rollouts of an answer, one JSON object each.

        RolloutError if the answer breaks off, or heartbeats show no progress for `rollout.vllm.timeout` seconds.
        """
        engine_steps = -1
        last_progress = time.monotonic()
        for text in answer:
            if not text.endswith(b"\n"):
                break
            line = json.loads(text)
            if "error" in line:
                raise RolloutError(f"the vLLM server at {self._server.url} failed: {line['error']}")
            if "done" in line:
                return
            if "alive" not in line:
                last_progress = time.monotonic()
                yield line
                continue
            if line["alive"] != engine_steps:
                engine_steps = line["alive"]
                last_progress = time.monotonic()
            if time.monotonic() - last_progress > self._server.timeout:
                raise RolloutError(
                    f"the vLLM server at {self._server.url} has made no progress for {self._server.timeout:g} s"
                )
        raise RolloutError(
            f"the vLLM server at {self._server.url} ended in the middle of an answer; its own output says why"
        )

    def _update_weights(self) -> str:
        """Sends the policy's weights to the server and returns their version.

        A collective: every rank iterates over the weights, since ZeRO-3 gathers each of them from all ranks, and every
        rank raises RolloutError if rank 0 could not send them.
        """
        version = uuid.uuid4().hex
        failure = None
        several_ranks = dist.is_initialized() and dist.get_world_size() > 1
        weights = iter(self._weights())
        if not several_ranks or dist.get_rank() == 0:
            try:
                self._send(version, weights)
            except RolloutError as error:
                failure = str(error)
        for _ in weights:  # on the other ranks, or after a failure on rank 0
            pass
        if several_ranks:
            outcome = [version, failure]
            dist.broadcast_object_list(outcome)
            version, failure = outcome  # type: ignore[assignment]
        if failure is not None:
            raise RolloutError(failure)
        return version

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
        with self._server.request(f"/weights?version={version}&last={int(last)}", save(part)) as answer:
            answer.read()
