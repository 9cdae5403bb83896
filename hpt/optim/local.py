"""The optimizer side of training in one process: accumulate gradients, clip, skip, step."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hpt.config.schema import Config
from hpt.optim.adamw import AdamW


def learning_rate_scale(config: Config) -> Callable[[int], float]:
    """Training steps done -> factor of optimizer.lr: linear warm-up from its first fraction, then the schedule to 0."""
    warmup, decay = config.optimizer.warmup_steps, max(1, config.steps - config.optimizer.warmup_steps)
    shapes: dict[str, Callable[[float], float]] = {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    shape = shapes[config.optimizer.schedule]

    def scale(done: int) -> float:
        return (done + 1) / (warmup + 1) if done < warmup else shape(min(1.0, (done - warmup) / decay))

    return scale


# Of float16 gradients, which a token's weight in the loss would push below 6e-8, the least number they have.
LOSS_SCALE = 2.0**16


@dataclass(frozen=True)
class Update:
    """What one optimizer update did."""

    grad_norm: float  # before clipping
    lr: float
    skipped: bool  # the norm was above optimizer.skip_grad_norm, or not finite


class Engine:
    """The optimizer of one process. What a trained parameter costs in bytes, at rest and (+) from backward to step:

        weight              | weight | gradient | master        | moments | moments, optimizer.states 8bit
        float32             | 4      | + 4      | the weight    | 8       | 2.03
        bfloat16            | 2      | + 2      | 2 (remainder) | 8       | 2.03
        float16             | 2      | + 2      | 4             | 8       | 2.03
        frozen (model.lora) | dtype, or 0.52 in nf4; nothing else

    `optimizer.offload` moves masters and moments to CPU memory. An update needs a few times 64 MiB besides, at any size
    of the model (`adamw`). Gradients of several micro-batches are summed in the weight's dtype. Of float16 weights
    the loss is scaled, by half as much after every update that is skipped because a gradient was not finite.
    """

    kind = "local"
    min_micro_batches = 0

    def __init__(self, model: torch.nn.Module, config: Config) -> None:
        self.module = model  # what the forward pass calls
        self.settings = config.optimizer
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = AdamW(self.parameters, config.optimizer)
        self.lr_scale = learning_rate_scale(config)
        self.steps = 0  # training steps done
        self.loss_scale = LOSS_SCALE if any(p.dtype == torch.float16 for p in self.parameters) else 1.0

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """In it every rank has all weights, and may call the model as it likes: for generation."""
        return nullcontext()

    def gathered_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The model's state dict, gathered on rank 0; None where its modules hold all of it."""
        return None

    def backward(self, loss: torch.Tensor) -> None:
        (loss * self.loss_scale).backward()

    def step(self) -> Update:
        """Applies what was accumulated since the last call. An update without rows has gradient 0, as it should."""
        norm = self._gradient_norm() / self.loss_scale
        limit = self.settings.skip_grad_norm or math.inf
        lr = self.settings.lr * self.lr_scale(self.steps)
        skipped = not math.isfinite(norm.item()) or norm.item() > limit
        if not skipped:
            # As torch.nn.utils.clip_grad_norm_ has it.
            clip = (self.settings.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            self.optimizer.step(lr, clip / self.loss_scale)
        elif not math.isfinite(norm.item()):
            self.loss_scale = max(1.0, self.loss_scale / 2)
        for parameter in self.parameters:
            parameter.grad = None
        return Update(norm.item(), lr, skipped)

    def end_step(self) -> None:
        """Moves the learning rate's schedule on by one training step."""
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "loss_scale": self.loss_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self.loss_scale = state.get("loss_scale", self.loss_scale)

    def _gradient_norm(self) -> torch.Tensor:
        """() float32, over all parameters, summed in float32 whatever the gradients' dtype."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        return torch.linalg.vector_norm(torch.stack(norms))
