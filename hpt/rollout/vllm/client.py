"""Rollouts by a vLLM server (`hpt serve`), which gets the policy's weights over a connection of its own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import torch

from hpt.config.schema import Config
from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.groups import Groups
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.completions import Completions
from hpt.rollout.vllm.connection import ServerConnection, ServerLost
from hpt.rollout.vllm.identity import check_server, transfer_backend
from hpt.rollout.vllm.requests import requests_for
from hpt.rollout.vllm.responses import logprobs_mode
from hpt.rollout.vllm.senders import WeightDescription
from hpt.rollout.vllm.transfer import WeightTransfer
from hpt.rollout.vllm.waiting import ensure_server, wait_for_server
from hpt.rollout.weights import GetWeights
from hpt.support.distributed import launched
from hpt.support.errors import ConfigError, HptError


class VllmClient(RolloutEngine):
    """Samples on the server at `rollout.vllm.url`. HptError if it is absent or does not serve this run's model.

    weights: gives the policy's current weights. stop_ids: any of them ends a response. vocabulary: the model's entries.
    device: the trainer's. longest_prompt: in tokens. With several ranks `generate` is a collective: all ranks gather
    the weights that rank 0 sends, and all raise if one fails.
    """

    def __init__(
        self,
        config: Config,
        weights: GetWeights,
        *,
        stop_ids: Sequence[int],
        vocabulary: int,
        device: torch.device,
        longest_prompt: int,
    ) -> None:
        self._weights = weights
        self._world = launched()
        self._wait = config.rollout.vllm.wait
        self._version: str | None = None  # of the weights that the server has; None if they are outdated
        self._descriptions: list[WeightDescription] = []
        self._server = ServerConnection(config)
        self._check = partial(check_server, self._server, config, device, longest_prompt + config.longest_response)
        ensure_server(self._check, self._wait, self._world)
        backend = transfer_backend(config, device)
        if backend == "ipc" and self._world.size > 1:
            raise ConfigError(
                f'rollout.vllm.weight_transfer = "ipc" goes with one process of the trainer, and it has '
                f"{self._world.size}: use nccl"
            )
        self._transfer = WeightTransfer(self._server, backend, device)
        self._completions = Completions(self._server, stop_ids, vocabulary, logprobs_mode(config))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        groups = Groups(len(prompts), sampling.n, on_rollout)
        requests = list(requests_for(prompts, sampling.n, seed))

        def sample() -> tuple[ServerLost | None, int]:
            """Samples this rank's missing rollouts. Returns how the server was lost, if it was, and their number."""
            missing = [request for request in requests if not groups.has(request.index, request.number)]
            sampled = 0
            try:
                self._server.post("/reset_prefix_cache")  # otherwise the tokens could depend on earlier calls
                self._confirm_version()
                with closing(self._completions.sample(missing, sampling, self._confirm_version)) as finished:
                    for request, rollout in finished:
                        sampled += 1
                        groups.add(request.index, request.number, rollout)
            except ServerLost as error:
                return error, sampled
            return None, sampled

        deadline = 0.0
        while True:
            lost, sampled = self._attempt(sample)
            if lost is None:
                return groups.finished()
            self._version = None
            self._transfer.close()
            if sampled or not deadline:
                deadline = time.monotonic() + self._wait
            wait_for_server(self._check, lost, self._wait, deadline, self._world)

    def weights_changed(self) -> None:
        self._version = None

    def close(self) -> None:
        self._transfer.close()

    def _attempt(self, sample: Callable[[], tuple[ServerLost | None, int]]) -> tuple[ServerLost | None, int]:
        """Sends the weights if they are outdated, and calls `sample`. Returns what all ranks' `sample` say together."""
        if self._version is None:
            try:
                self._version = self._update_weights()
            except ServerLost as error:
                return error, 0
        outcomes = self._world.agree(sample)
        return next((error for error, _ in outcomes if error), None), sum(sampled for _, sampled in outcomes)

    def _confirm_version(self) -> None:
        assert self._version is not None
        self._server.confirm_version(self._version)

    def _update_weights(self) -> str:
        """Sends the policy's weights to the server and returns their version.

        A collective: every rank iterates over the weights, since ZeRO-3 gathers each of them from all ranks, and every
        rank raises if rank 0 could not send them.
        """
        if not self._descriptions:
            self._descriptions = [
                WeightDescription(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._weights()
            ]
        version, failure = uuid.uuid4().hex, None
        weights = iter(self._weights())
        if self._world.main:
            try:
                self._transfer.update(version, self._descriptions, weights)
            except HptError as error:
                failure = error
        for _ in weights:  # on the other ranks, or after a failure on rank 0
            pass
        version, failure = self._world.gather((version, failure))[0]
        if failure is not None:
            raise failure
        return version
