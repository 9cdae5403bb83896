"""The optimizer engine for one process: accumulate gradients, clip, skip, step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from hpt.config.schema import Config
from hpt.config.sections.training import OptimizerConfig
from hpt.optim.adamw import AdamW
from hpt.optim.engine import Update
from hpt.optim.schedule import advance, make_schedule

# First factor of the loss for float16 weights: unscaled, the gradient of a token with a small weight in the loss would
# fall below 6e-8, the smallest float16.
LOSS_SCALE = 2.0**16


def make_adamw(parameters: Iterable[torch.nn.Parameter], settings: OptimizerConfig) -> AdamW:
    """The optimizer that the recipe's `optimizer` section describes."""
    return AdamW(
        parameters,
        settings.lr,
        settings.betas,
        weight_decay=settings.weight_decay,
        states=settings.states,
        offload=settings.offload,
    )


class LocalEngine:
    """Trains a module in one process. Bytes per trained parameter, always and (+) from backward to step:

        weight              | weight | gradient | master        | moments | moments, optimizer.states 8bit
        float32             | 4      | + 4      | the weight    | 8       | 2.03
        bfloat16            | 2      | + 2      | 2 (remainder) | 8       | 2.03
        float16             | 2      | + 2      | 4             | 8       | 2.03
        frozen (model.lora) | dtype, or 0.52 in nf4; nothing else

    `optimizer.offload` moves masters and moments to CPU memory. An update needs a few times 64 MiB more, whatever the
    size of the model (see `AdamW`). Gradients of several micro-batches are summed in the dtype of the weight. With
    float16 weights the loss is scaled; the scale is halved after every update that is skipped because a gradient was
    not finite.
    """

    kind = "local"
    min_micro_batches = 0

    def __init__(self, module: torch.nn.Module, config: Config) -> None:
        self.module = module
        self.config = config
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = make_adamw(self.parameters, config.optimizer)
        self.schedule = make_schedule(self.optimizer, config.optimizer, config.steps)
        self.loss_scale = LOSS_SCALE if any(p.dtype == torch.float16 for p in self.parameters) else 1.0

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Nothing to do: all weights are here."""
        return nullcontext()

    def gathered_state_dict(self) -> None:
        """None: `module` holds all weights."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss` () to that of the update in progress."""
        (loss * self.loss_scale).backward()

    def step(self) -> Update:
        """Applies and clears the accumulated gradient, unless its norm forbids it."""
        settings = self.config.optimizer
        norm = self._gradient_norm().item() / self.loss_scale
        finite = math.isfinite(norm)
        skipped = not finite or norm > (settings.skip_grad_norm or math.inf)
        if not skipped:
            clip = min(1.0, settings.clip_grad_norm / (norm + 1e-6))  # as in torch.nn.utils.clip_grad_norm_
            self.optimizer.step(gradient_factor=clip / self.loss_scale)
        elif not finite:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        self.optimizer.zero_grad()
        return Update(norm, float(self.schedule.get_last_lr()[0]), skipped)

    def end_step(self) -> None:
        """Advances the learning rate by one training step."""
        advance(self.schedule)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer state (not copied), the training steps done and the loss scale."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "steps": self.schedule.last_epoch,
            "loss_scale": self.loss_scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; hyperparameters stay those of the recipe, which a resumed run may change."""
        hyperparameters = {"param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(state["optimizer"] | hyperparameters)
        self.schedule = make_schedule(self.optimizer, self.config.optimizer, self.config.steps, done=state["steps"])
        self.loss_scale = state["loss_scale"]

    def _gradient_norm(self) -> torch.Tensor:
        """() float32, over all parameters, summed in float32 whatever the dtype of the gradients."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        return torch.linalg.vector_norm(torch.stack(norms))
