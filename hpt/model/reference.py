"""The reference model: the run's start model, which a KL penalty holds the policy to (`loss.kl_coef`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hpt.config.schema import Config
from hpt.method.micro_batches import MicroBatch
from hpt.model.adapters import is_adapted
from hpt.model.loading import load_model, prepare_for_training
from hpt.model.policy import Policy


class Reference:
    """Log-probabilities under `model.path`, whatever stage or step the run is at.

    A policy with adapters is its own reference model with the adapters off: there is no second copy. Otherwise a frozen
    copy is kept in CPU memory and moved to the policy's device while it is used.
    """

    def __init__(self, policy: Policy, config: Config) -> None:
        self.policy = policy
        self.device = policy.model.device
        self.frozen: Policy | None = None
        if not is_adapted(policy.model):
            model = prepare_for_training(load_model(config.model.path, config.model, self.device), config.model)
            self.frozen = Policy(model.requires_grad_(False), config)
            self._move(torch.device("cpu"))

    @contextmanager
    def on_device(self) -> Iterator[Callable[[MicroBatch], torch.Tensor]]:
        """Yields `Policy.logprobs` of the reference model; the policy must not be used inside."""
        if self.frozen is None:
            with self.policy.model.disable_adapter():  # type: ignore[operator]
                yield self.policy.logprobs
            return
        in_cpu_memory = self._move(self.device)
        try:
            yield self.frozen.logprobs
        finally:
            for tensor, data in in_cpu_memory:
                tensor.data = data

    def _move(self, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Moves the frozen copy; returns its tensors with their data before, so that going back copies nothing."""
        assert self.frozen is not None
        tensors = [*self.frozen.model.parameters(), *self.frozen.model.buffers()]
        before = [(tensor, tensor.data) for tensor in tensors]
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        return before
