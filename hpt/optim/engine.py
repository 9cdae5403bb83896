"""The optimizer engine protocol: what the trainer asks of whatever turns losses into updates of the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Update:
    """What one optimizer update did."""

    grad_norm: float  # before clipping; may be infinite or NaN
    lr: float
    skipped: bool  # the norm was above optimizer.skip_grad_norm, or not finite


class OptimizerEngine(Protocol):
    """Trains one module: any number of `backward` calls, then `step`, is one update.

    With several processes, `backward`, `step`, the gathering methods and the forward pass of `module` are collectives:
    every rank must call them in the same order.
    """

    kind: str
    """Recorded in checkpoints: a run is resumed by the kind of engine that wrote its state."""

    min_micro_batches: int
    """Backward passes that an update needs on every rank: 0, or 1 where it cannot do without."""

    module: torch.nn.Module
    """Runs the forward pass, with the arguments of the module that is trained."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss` (), this rank's share of the global loss, to the update in progress."""

    def step(self) -> Update:
        """Applies and clears the accumulated gradient; without a backward pass it is 0."""

    def end_step(self) -> None:
        """Advances the learning rate by one training step, which may have had several updates."""

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """While it is open, every rank holds all weights and may call the model on its own, as generation does."""

    def gathered_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The model's state dict on the CPU of rank 0, empty on other ranks; None where `module` holds all weights."""

    def state_dict(self) -> dict[str, Any]:
        """This rank's optimizer state and the position in the schedule; the weights are saved elsewhere."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict` bit for bit, after the weights. Hyperparameters stay those of the recipe."""
