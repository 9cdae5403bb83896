"""The optimizer engine for several processes: DeepSpeed's ZeRO, which shards what a model needs for training.

DeepSpeed averages gradients over ranks, but the loss has global normalisers and needs their sum: so the loss is
multiplied by the number of ranks. With `managed_gradient_accumulation: false` every `step` ends an accumulation of any
number of micro-batches. DeepSpeed clips by a norm over all ranks and parameters, which it computes first; whether that
norm forbids the update is decided when DeepSpeed calls the optimizer.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from hpt.config.recipe import merge
from hpt.config.schema import Config
from hpt.optim.engine import Update
from hpt.optim.schedule import advance, make_schedule
from hpt.support.distributed import World

# Entries of the optimizer's state that are left out of checkpoints: objects that are not plain data, and settings,
# which a resumed run takes from its recipe.
_NOT_STATE = {"loss_scaler", "zero_stage", "param_slice_mappings", "clip_grad"}


class DeepSpeedEngine:
    """AdamW under ZeRO, with float32 masters of 16-bit weights.

    `backward` and `step` are collectives, and so is every forward pass in stage 3.
    """

    min_micro_batches = 1  # DeepSpeed cannot step without a gradient, even if it is 0

    def __init__(self, module: torch.nn.Module, config: Config, world: World) -> None:
        self.config = config
        self.world = world
        self.stage = config.deepspeed.stage
        self.kind = f"deepspeed, ZeRO-{self.stage}"
        self.model: Any = module.model  # of the PolicyModule
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.adamw = _SkippingAdamW(self, parameters)
        self.deepspeed = _deepspeed(next(module.parameters()).device)
        self.module = self.deepspeed.initialize(model=module, optimizer=self.adamw, config=deepspeed_config(config))[0]
        self.schedule = make_schedule(self.adamw, config.optimizer, config.steps)

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """While it is open, every rank holds all weights and may call the model on its own; a collective."""
        return self._gathered() if self.stage == 3 else nullcontext()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Removes DeepSpeed's hooks meanwhile: they make a collective of every layer, to shard and to gather it."""
        offload = self.module.optimizer.parameter_offload
        self.module.optimizer._partition_all_parameters()  # shards what a forward pass has left gathered
        offload._remove_module_hooks()
        offload.forward_hooks.clear()
        offload.backward_hooks.clear()
        try:
            with self.deepspeed.zero.GatheredParameters(list(self.model.parameters())):
                yield
        finally:
            offload.setup_zero_stage3_hooks()

    def gathered_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The model's state dict on the CPU of rank 0, empty on other ranks; None below stage 3. A collective."""
        if self.stage < 3:
            return None
        weights = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            # One at a time: the whole model need not fit beside the shards.
            with self.deepspeed.zero.GatheredParameters([tensor]):
                if self.world.main:
                    weights[name] = tensor.detach().to("cpu", copy=True)
        return weights

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss` (), this rank's share of the global loss; a collective."""
        self.module.backward(loss * self.world.size, scale_wrt_gas=False)

    @property
    def grad_norm(self) -> float:
        """Of the current update, before clipping; infinite if it is not a number."""
        return float(self.module.optimizer._global_grad_norm)

    @property
    def skips(self) -> bool:
        """Whether the gradient norm forbids the current update."""
        limit = self.config.optimizer.skip_grad_norm or math.inf
        return not math.isfinite(self.grad_norm) or self.grad_norm > limit

    def step(self) -> Update:
        """Applies and clears the accumulated gradient, unless its norm forbids it; a collective."""
        self.module.step()
        return Update(self.grad_norm, float(self.schedule.get_last_lr()[0]), self.skips)

    def end_step(self) -> None:
        """Advances the learning rate by one training step."""
        advance(self.schedule)

    def state_dict(self) -> dict[str, Any]:
        """This rank's shards (not copied) and the training steps done."""
        state = self.module.optimizer.state_dict()
        shards = {name: value for name, value in state.items() if name not in _NOT_STATE}
        return {"zero": shards, "steps": self.schedule.last_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`, after the weights; hyperparameters stay those of the recipe."""
        optimizer = self.module.optimizer
        own = state["zero"] | {"loss_scaler": optimizer.loss_scaler}
        # DeepSpeed takes a list of all ranks' states but reads only this rank's: the others are not loaded.
        states = [own if rank == self.world.rank else {} for rank in range(self.world.size)]
        optimizer.load_state_dict(states, load_from_fp32_weights=True)
        settings = self.config.optimizer
        for group in self.adamw.param_groups:
            group.update(betas=settings.betas, weight_decay=settings.weight_decay)
        self.schedule = make_schedule(self.adamw, settings, self.config.steps, done=state["steps"])


class _SkippingAdamW(torch.optim.AdamW):
    """Does nothing if the engine skips the update. DeepSpeed calls it when the gradient norm is known."""

    def __init__(self, engine: DeepSpeedEngine, parameters: list[torch.nn.Parameter]) -> None:
        self.engine = engine
        settings = engine.config.optimizer
        super().__init__(
            parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if not self.engine.skips:
            super().step(closure)


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run; `deepspeed.options` override the rest."""
    settings = config.deepspeed
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if settings.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    options: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # required, but nothing used here reads it
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.clip_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on a CPU too, and needs no compiler
        "zero_allow_untested_optimizer": True,  # `_SkippingAdamW` is a subclass that DeepSpeed does not know
    }
    if config.model.dtype == "bfloat16":
        options["bf16"] = {"enabled": True, "check_grad_overflow": True}
    merge(options, settings.options)
    return options


def _deepspeed(device: torch.device) -> Any:
    """The package; on a CPU without the extension that it would compile first."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed
