"""AdamW (arXiv 1711.05101) that never holds a second copy of the weights.

A bfloat16 weight is trained against an exact float32 master. The master is stored in two halves: the weight itself,
which is the master rounded to 16 bits, and the difference of their bit patterns, an int16. Master, gradient and
moments are float32 during the update, one slice of a parameter at a time.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from hpt.support.errors import HptError

SLICE = 2**24  # elements updated at once: 64 MiB per float32 temporary; a multiple of BLOCK
BLOCK = 256  # elements that share a scale in 8-bit states
SMALL = 4096  # tensors with fewer elements keep float32 states, as in bitsandbytes' own optimizers


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """float32 -> (bfloat16 nearest to it, int16 remainder) of the same shape; `join_master` restores every bit.

    Ties are rounded away from zero. A cast rounds them to even, and an even bfloat16 would then stand for 65,537
    masters, one more than an int16 can tell apart.
    """
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    remainder = (bits - (high << 16)).to(torch.int16)
    return high.to(torch.int16).view(torch.bfloat16), remainder


def join_master(weight: Tensor, remainder: Tensor) -> Tensor:
    """The float32 master of a bfloat16 weight and its int16 remainder, exactly."""
    return ((weight.view(torch.int16).to(torch.int32) << 16) + remainder).view(torch.float32)


def stored_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The 1-D tensors of a parameter's state: moments and their scales, remainder or master; not the step count."""
    return {name: tensor for name, tensor in state.items() if name != "step"}


class AdamW(torch.optim.Optimizer):
    """AdamW for contiguous parameters of any floating dtype, with exact float32 masters of 16-bit weights.

    Bytes per parameter in `state`: float32 8 (moments), bfloat16 10 (moments 8, remainder 2), float16 12 (moments 8,
    master 4). With `states="8bit"` (bitsandbytes, blocks of 256) moments take 2 + 8/256 bytes instead of 8, except in
    tensors with fewer than `SMALL` elements. `offload` keeps the state in CPU memory, pinned if the weights are on
    another device.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        states: Literal["float32", "8bit"] = "float32",
        offload: bool = False,
    ) -> None:
        self.states = states
        self.offload = offload
        self.quantization_maps: dict[torch.device, tuple[Tensor, Tensor]] = {}  # (256,) signed, (256,) unsigned
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            self.state[parameter] = self._initial_state(parameter)
            if self.states == "8bit" and parameter.device not in self.quantization_maps:
                self.quantization_maps[parameter.device] = _quantization_maps(parameter.device)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, *, gradient_factor: float = 1.0
    ) -> None:
        """One update by the gradients times `gradient_factor`, which is applied in float32.

        A parameter without a gradient has gradient 0. As with the `grad_scale` of torch's fused AdamW, float32
        gradients are scaled in place.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                self._update_parameter(parameter, group, gradient_factor)
        if self.offload and torch.cuda.is_available():
            torch.cuda.synchronize()  # the host may read pinned memory only when the copies into it are done

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a `state_dict` bit for bit, in the memory that the state has now.

        torch's own method would cast every state to the dtype and device of its parameter. HptError where the saved
        state is for other parameters or another kind of state.
        """
        own, saved = self.state_dict()["state"], state_dict.get("state", {})  # hpt 0.1.0 had another layout
        if _shapes(own) != _shapes(saved):
            raise HptError(
                "the optimizer state in the checkpoint does not fit this run: model.dtype, model.lora, "
                "optimizer.states and the like must be the same as in the run that wrote it"
            )
        for index, tensors in own.items():
            for name, tensor in tensors.items():
                tensor.copy_(saved[index][name])
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved_group.items() if name != "params"})

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """`step` (), the number of updates, and 1-D tensors; with a remainder of 0 the master is the weight."""
        count = parameter.numel()
        device = torch.device("cpu") if self.offload else parameter.device

        def zeros(dtype: torch.dtype, length: int = count) -> Tensor:
            pinned = device != parameter.device
            return torch.zeros(length, dtype=dtype, device=device, pin_memory=pinned)

        state = {"step": torch.zeros(())}
        if parameter.dtype == torch.bfloat16:
            state["remainder"] = zeros(torch.int16)
        elif parameter.dtype != torch.float32:
            state["master"] = zeros(torch.float32).copy_(parameter.detach().view(-1))
        eight_bits = self.states == "8bit" and count >= SMALL
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = zeros(torch.uint8 if eight_bits else torch.float32)
            if eight_bits:
                state[f"{name}_scale"] = zeros(torch.float32, -(-count // BLOCK))
        return state

    def _update_parameter(self, parameter: Tensor, group: dict[str, Any], gradient_factor: float) -> None:
        state = self.state[parameter]
        state["step"] += 1
        stored = stored_tensors(state)
        weight = parameter.detach().view(-1)
        gradient = None if parameter.grad is None else parameter.grad.reshape(-1)
        for start in range(0, weight.numel(), SLICE):
            part = slice(start, min(start + SLICE, weight.numel()))
            if gradient is None:
                gradient_part = torch.zeros_like(weight[part], dtype=torch.float32)
            else:
                gradient_part = gradient[part].float()
                if gradient_factor != 1:
                    gradient_part.mul_(gradient_factor)
            self._update_slice(weight[part], gradient_part, int(state["step"]), _sliced(stored, part), group)

    def _update_slice(
        self, weight: Tensor, gradient: Tensor, step: int, stored: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """Updates weight (n,), of any dtype, and its stored tensors in place; gradient (n,) float32."""
        here = {name: tensor.to(weight.device, non_blocking=True) for name, tensor in stored.items()}
        master = weight
        if "remainder" in here:
            master = join_master(weight, here["remainder"])
        elif "master" in here:
            master = here["master"]
        if here["exp_avg"].dtype == torch.uint8:
            self._update_8bit(master, gradient, step, here, group)
        else:
            _update_float32(master, gradient, step, here, group)
        if "remainder" in here:
            rounded, here["remainder"] = split_master(master)
            weight.copy_(rounded)
        elif master is not weight:
            weight.copy_(master)
        for name, tensor in stored.items():
            if here[name] is not tensor:
                tensor.copy_(here[name], non_blocking=True)

    def _update_8bit(
        self, master: Tensor, gradient: Tensor, step: int, states: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        signed, unsigned = self.quantization_maps[master.device]
        optimizer_update_8bit_blockwise(
            "adam",
            g=gradient,
            p=master,
            state1=states["exp_avg"],
            state2=states["exp_avg_sq"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            beta3=0.0,  # beta3 and alpha belong to other optimizers
            alpha=0.0,
            eps=group["eps"],
            step=step,
            lr=group["lr"],
            qmap1=signed,
            qmap2=unsigned,
            absmax1=states["exp_avg_scale"],
            absmax2=states["exp_avg_sq_scale"],
            weight_decay=group["weight_decay"],
        )


def _update_float32(
    master: Tensor, gradient: Tensor, step: int, states: dict[str, Tensor], group: dict[str, Any]
) -> None:
    done = torch.full((), float(step - 1), device=master.device)
    adamw(
        [master],
        [gradient],
        [states["exp_avg"]],
        [states["exp_avg_sq"]],
        [],
        [done],
        foreach=False,
        fused=True,  # one pass over memory, on a CPU too
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _quantization_maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """The 256 values that bitsandbytes' 8-bit states stand for: (256,) signed and (256,) unsigned."""
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=True).to(device), create_dynamic_map(signed=False).to(device)


def _sliced(stored: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    """The entries of a slice that starts at a multiple of BLOCK; from scales, those of its blocks."""
    blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
    return {name: tensor[blocks if name.endswith("_scale") else part] for name, tensor in stored.items()}


def _shapes(state: dict[int, dict[str, Tensor]]) -> dict[int, dict[str, tuple[torch.Size, torch.dtype]]]:
    return {
        index: {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        for index, tensors in state.items()
    }
