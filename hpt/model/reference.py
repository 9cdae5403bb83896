"""The start model of a run, which a KL penalty holds the policy to (`loss.kl_coef`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hpt.config.schema import Config
from hpt.method.rows import MicroBatch
from hpt.model.loading import is_adapted, load_model, prepare_for_training
from hpt.model.policy import Policy


class Reference:
    """Log-probabilities under `model.path`, whatever stage or step the run is at.

    Where the policy has adapters it is the policy's own model with the adapters off: no second copy. Elsewhere it is a
    frozen copy that waits in CPU memory, and takes the policy's device only while it is asked.
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
    def at_hand(self) -> Iterator[Callable[[MicroBatch], torch.Tensor]]:
        """Gives what `Policy.logprobs` is, of the start model; the policy itself is out of reach in the meantime."""
        if self.frozen is None:
            with self.policy.model.disable_adapter():  # type: ignore[operator]
                yield self.policy.logprobs
            return
        waiting = self._move(self.device)
        try:
            yield self.frozen.logprobs
        finally:
            for tensor, data in waiting:
                tensor.data = data

    def _move(self, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Puts the frozen copy on `device`; returns its tensors with what they were, to be put back without a copy."""
        assert self.frozen is not None
        tensors = [*self.frozen.model.parameters(), *self.frozen.model.buffers()]
        before = [(tensor, tensor.data) for tensor in tensors]
        for tensor in tensors:
            tensor.data = tensor.data.to(device)
        return before
