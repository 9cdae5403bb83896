"""AdamW (arXiv 1711.05101) that never holds a second copy of the weights.

A bfloat16 weight is trained against an exact float32 master that is kept as two halves: the weight itself, which is the
master rounded to 16 bits, and the difference of their bit patterns, an int16. Master, gradient and moments meet in
float32 one slice of a parameter at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from hpt.config.schema import OptimizerConfig
from hpt.support.errors import HptError

EPSILON = 1e-8
SLICE = 2**24  # elements updated at once: 64 MiB of each float32 temporary; a multiple of BLOCK
BLOCK = 256  # elements that share a scale in 8-bit states
SMALL = 4096  # tensors of fewer elements keep float32 states, as in bitsandbytes' own optimizers


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """float32 -> (bfloat16 nearest to it, int16 remainder) of the same shape; `join_master` gives the bits back.

    Ties are rounded away from zero. Rounded to even, as a cast does it, an even bfloat16 would stand for 65,537
    masters, one more than an int16 can tell apart.
    """
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    remainder = (bits - (high << 16)).to(torch.int16)
    return high.to(torch.int16).view(torch.bfloat16), remainder


def join_master(weight: Tensor, remainder: Tensor) -> Tensor:
    """The float32 master of a bfloat16 weight and its int16 remainder, exactly."""
    return ((weight.view(torch.int16).to(torch.int32) << 16) + remainder).view(torch.float32)


class AdamW:
    """AdamW over contiguous parameters of any floating dtype.

    Bytes a parameter kept here, on the parameter's device or (`optimizer.offload`) in CPU memory, pinned where that
    is another: float32 8, bfloat16 10 (moments 8, remainder 2), float16 12 (moments 8, master 4). With 8-bit states the
    moments take 2 + 8/256 in place of 8, but for tensors below `SMALL` elements.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], settings: OptimizerConfig) -> None:
        self.parameters = list(parameters)
        self.settings = settings
        self.steps = 0
        self.kept = [self._initial_state(parameter) for parameter in self.parameters]
        if settings.states == "8bit":
            from bitsandbytes.functional import create_dynamic_map

            maps = [create_dynamic_map(signed=signed) for signed in (True, False)]
            devices = {parameter.device for parameter in self.parameters}
            self.maps = {device: [values.to(device) for values in maps] for device in devices}

    @torch.no_grad()
    def step(self, lr: float, scale: Tensor) -> None:
        """One update by the gradients times `scale` (); a parameter without one has gradient 0."""
        self.steps += 1
        for parameter, kept in zip(self.parameters, self.kept, strict=True):
            weight = parameter.data.view(-1)
            gradient = None if parameter.grad is None else parameter.grad.reshape(-1)
            for start in range(0, weight.numel(), SLICE):
                part = slice(start, min(start + SLICE, weight.numel()))
                if gradient is None:
                    scaled = torch.zeros_like(weight[part], dtype=torch.float32)
                else:
                    scaled = gradient[part].float().mul_(scale)
                self._update(weight[part], scaled, _sliced(kept, part), lr)
        if self.settings.offload and torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies into pinned memory are done when the host reads them

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "kept": self.kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        shapes = [
            [{name: (t.shape, t.dtype) for name, t in kept.items()} for kept in k] for k in (state["kept"], self.kept)
        ]
        if shapes[0] != shapes[1]:
            raise HptError(
                "the optimizer's state in the checkpoint is of other parameters or kinds of states: model.dtype, "
                "model.lora, optimizer.states and the like must be as they were"
            )
        self.steps = state["steps"]
        for kept, saved in zip(self.kept, state["kept"], strict=True):
            for name, tensor in kept.items():
                tensor.copy_(saved[name])

    def _initial_state(self, parameter: torch.nn.Parameter) -> dict[str, Tensor]:
        """1-D tensors by name; a fresh remainder of 0 says that the master is the weight."""
        count = parameter.numel()
        device = torch.device("cpu") if self.settings.offload else parameter.device

        def zeros(dtype: torch.dtype, length: int = count) -> Tensor:
            pinned = device != parameter.device
            return torch.zeros(length, dtype=dtype, device=device, pin_memory=pinned)

        kept = {}
        if parameter.dtype == torch.bfloat16:
            kept["remainder"] = zeros(torch.int16)
        elif parameter.dtype != torch.float32:
            kept["master"] = zeros(torch.float32).copy_(parameter.detach().view(-1))
        eight_bits = self.settings.states == "8bit" and count >= SMALL
        for name in ("exp_avg", "exp_avg_sq"):
            kept[name] = zeros(torch.uint8 if eight_bits else torch.float32)
            if eight_bits:
                kept[f"{name}_scale"] = zeros(torch.float32, -(-count // BLOCK))
        return kept

    def _update(self, weight: Tensor, gradient: Tensor, kept: dict[str, Tensor], lr: float) -> None:
        """The update of a slice, in place: weight (n,) of any dtype, gradient (n,) float32."""
        here = {name: tensor.to(weight.device, non_blocking=True) for name, tensor in kept.items()}
        master = join_master(weight, here["remainder"]) if "remainder" in here else here.get("master", weight)
        self._adamw(master, gradient, here, lr)
        if "remainder" in here:
            rounded, here["remainder"] = split_master(master)
            weight.copy_(rounded)
        elif master is not weight:
            weight.copy_(master)
        for name, tensor in kept.items():
            if here[name] is not tensor:
                tensor.copy_(here[name], non_blocking=True)

    def _adamw(self, master: Tensor, gradient: Tensor, states: dict[str, Tensor], lr: float) -> None:
        beta1, beta2 = self.settings.betas
        decay = self.settings.weight_decay
        first, second = states["exp_avg"], states["exp_avg_sq"]
        if first.dtype == torch.uint8:
            from bitsandbytes.functional import optimizer_update_8bit_blockwise

            first_map, second_map = self.maps[master.device]
            optimizer_update_8bit_blockwise(
                "adam",
                gradient,
                master,
                first,
                second,
                beta1,
                beta2,
                0.0,  # beta3 and alpha are of other optimizers
                0.0,
                EPSILON,
                self.steps,
                lr,
                first_map,
                second_map,
                states["exp_avg_scale"],
                states["exp_avg_sq_scale"],
                decay,
            )
            return
        fused = master.device.type == "cuda"
        done = torch.tensor(float(self.steps - 1), device=master.device if fused else "cpu")
        adamw(
            [master],
            [gradient],
            [first],
            [second],
            [],
            [done],
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=decay,
            eps=EPSILON,
            maximize=False,
        )


def _sliced(kept: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    """The entries of a slice that starts at a multiple of BLOCK; of a scale, those of its blocks."""
    blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
    return {name: tensor[blocks if name.endswith("_scale") else part] for name, tensor in kept.items()}
