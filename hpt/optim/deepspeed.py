"""The optimizer side of training in several processes: DeepSpeed's ZeRO, which shards what a model needs to be trained.

DeepSpeed averages gradients over ranks, while the loss holds global normalisers and wants their sum: so the loss is
multiplied by the number of ranks. `managed_gradient_accumulation: false` makes every `step` the end of an accumulation,
of any number of micro-batches. Clipping is DeepSpeed's, by a norm over all ranks and parameters that it finds first;
whether that norm forbids the update is decided where DeepSpeed calls the optimizer.
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
from hpt.optim.local import Update, learning_rate_scale
from hpt.support.distributed import World

# Of the optimizer's state: objects that are not plain data, and settings that a resumed run takes from its recipe.
_NOT_STATE = {"loss_scaler", "zero_stage", "param_slice_mappings", "clip_grad"}


class ZeroEngine:
    """AdamW under ZeRO, with float32 masters of 16-bit weights; the interface of `hpt.optim.local.Engine`.

    backward and step are meetings of all ranks, and so is every forward pass in stage 3.
    """

    min_micro_batches = 1  # an update needs a gradient, even if it is 0

    def __init__(self, module: Any, config: Config, world: World) -> None:
        self.settings = config.optimizer
        self.world = world
        self.stage = config.deepspeed.stage
        self.kind = f"deepspeed, ZeRO-{self.stage}"
        self.model = module.model
        self.lr_scale = learning_rate_scale(config)
        self.steps = 0  # training steps done
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.adamw = _GuardedAdamW(self, parameters)
        self.deepspeed = _deepspeed(self.model.device)
        self.module = self.deepspeed.initialize(model=module, optimizer=self.adamw, config=deepspeed_config(config))[0]

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """In it every rank has all weights, and may call the model as it likes: for generation."""
        return self._gathered() if self.stage == 3 else nullcontext()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Without DeepSpeed's hooks: they would shard a layer again after its forward pass, and meet for the next."""
        offload = self.module.optimizer.parameter_offload
        self.module.optimizer._partition_all_parameters()  # what a forward pass has left whole
        offload._remove_module_hooks()
        offload.forward_hooks.clear()
        offload.backward_hooks.clear()
        try:
            with self.deepspeed.zero.GatheredParameters(list(self.model.parameters())):
                yield
        finally:
            offload.setup_zero_stage3_hooks()

    def gathered_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The model's state dict, gathered on rank 0 (empty on others); None where its modules hold all of it."""
        if self.stage < 3:
            return None
        weights = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            with self.deepspeed.zero.GatheredParameters([tensor]):  # singly: the whole need not fit beside the shards
                if self.world.main:
                    weights[name] = tensor.detach().to("cpu", copy=True)
        return weights

    def backward(self, loss: torch.Tensor) -> None:
        self.module.backward(loss * self.world.size, scale_wrt_gas=False)

    @property
    def grad_norm(self) -> float:
        """Of the update at hand, before clipping; infinite where it is not a number."""
        return float(self.module.optimizer._global_grad_norm)

    @property
    def skips(self) -> bool:
        """Whether the gradient's norm forbids the update at hand."""
        return not self.grad_norm <= (self.settings.skip_grad_norm or math.inf) or math.isinf(self.grad_norm)

    def step(self) -> Update:
        """Applies what was accumulated since the last call."""
        lr = self.settings.lr * self.lr_scale(self.steps)
        for group in self.module.optimizer.param_groups:
            group["lr"] = lr
        self.module.step()
        return Update(self.grad_norm, lr, self.skips)

    def end_step(self) -> None:
        """Moves the learning rate's schedule on by one training step."""
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """This rank's shards and the step."""
        state = self.module.optimizer.state_dict()
        return {"zero": {name: value for name, value in state.items() if name not in _NOT_STATE}, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The weights are loaded already; masters and moments follow."""
        optimizer = self.module.optimizer
        own = state["zero"] | {"loss_scaler": optimizer.loss_scaler}
        # A list of all ranks' states, of which each reads its own: so the others' need not be loaded.
        states = [own if rank == self.world.rank else {} for rank in range(self.world.size)]
        optimizer.load_state_dict(states, load_from_fp32_weights=True)
        self.steps = state["steps"]


class _GuardedAdamW(torch.optim.AdamW):
    """Leaves everything as it is where the engine skips the update; DeepSpeed calls it with the norm at hand."""

    def __init__(self, engine: ZeroEngine, parameters: list[torch.nn.Parameter]) -> None:
        self.engine = engine
        settings = engine.settings
        super().__init__(
            parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        if not self.engine.skips:
            super().step(closure)


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's own configuration of a run; `deepspeed.options` wins."""
    settings = config.deepspeed
    zero: dict[str, Any] = {"stage": settings.stage}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if settings.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # read by nothing that is used here
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.clip_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on a CPU as well, and needs no compiler
        "zero_allow_untested_optimizer": True,  # that it is a subclass
    }
    if config.model.dtype == "bfloat16":
        found["bf16"] = {"enabled": True, "check_grad_overflow": True}
    merge(found, settings.options)
    return found


def _deepspeed(device: torch.device) -> Any:
    """The package; on a CPU without the part that it would compile first."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed
