"""What the Triton backend launches, recorded without a GPU.

The backend's own host code runs on tensors without memory, and Triton itself turns each launch into what it would
compile for a GPU: types, constants, arguments that are None, and which integers and addresses are multiples of 16. So
what is compiled ahead of time is what is compiled at run time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
import upge
from torch import Tensor
from triton.backends.compiler import GPUTarget
from upge.backends import plan as plans
from upge.backends.plan import Gemm
from upge.backends.triton import TritonWorkspace
from upge.inputs import HeadInputs, NeededGradients, TokenInputs
from upge.token_loss import Coefficients, LossFormula

CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
# Persistent kernels start a program for each multiprocessor. The number is no constant of a kernel.
MULTIPROCESSORS = 132


@dataclass(frozen=True)
class Launch:
    """A kernel as Triton specialises it, with constants and attributes by the argument's position."""

    module: str
    kernel: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, Any]:
        """The constants by name."""
        names = list(self.signature)
        return {names[place]: value for (place,), value in self.constants.items()}

    @property
    def key(self) -> str:
        """Equal for two launches of the same machine code."""
        return repr(self)


@dataclass(frozen=True)
class Call:
    """A call of the fused loss, of Qwen2.5-7B's head unless other numbers are given, and what changes its kernels."""

    hidden: torch.dtype
    weight: torch.dtype
    width: int = 3584
    vocabulary: int = 152064
    tokens: int = 16384
    bias: bool = False
    softcap: bool = False
    entropy: bool = False
    z_loss: bool = False
    several: bool = False  # temperatures, objectives, advantages, ratios: all that the small kernels can read
    gradients: bool = True


def launches(call: Call, arch: str, tuned: Mapping[str, Gemm] | None = None) -> list[Launch]:
    """The launches of a call on a GPU of this architecture, in their order, each once.

    tuned: kernels of the GEMMs other than the shipped ones.
    """
    if plans.INTERPRETED:
        sys.exit("TRITON_INTERPRET=1 is set, so kernels run in Triton's interpreter and cannot be compiled: unset it")
    with _recording(arch, tuned) as found:
        _run(call)
    return list({launch.key: launch for launch in found}.values())


@contextmanager
def _recording(arch: str, tuned: Mapping[str, Gemm] | None) -> Iterator[list[Launch]]:
    found: list[Launch] = []

    def record(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        attributes = {place: value for place, value in compile["configs"][0].items() if value}
        launch = Launch(
            fn.module,
            fn.name,
            compile["signature"],
            compile["constants"],
            attributes,
            compile["num_warps"],
            compile["num_stages"],
        )
        found.append(launch)
        return True  # compile nothing, launch nothing

    shipped = plans.plan_for

    def plan_for(hidden: torch.dtype, weight: torch.dtype, _: object, width: int, **options: Any) -> plans.Plan:
        return shipped(hidden, weight, CAPABILITIES[arch], width, **options | {"tuned": tuned})

    device = SimpleNamespace(multi_processor_count=MULTIPROCESSORS)
    with (
        patch.object(plans, "plan_for", plan_for),
        patch.object(torch.cuda, "get_device_properties", lambda _: device),
        patch.object(triton.runtime.driver, "_active", _Driver(arch)),
        patch.object(triton.knobs.runtime, "jit_cache_hook", record),
    ):
        yield found


class _Driver:
    """As much of a GPU's driver as a launch asks for before it compiles."""

    def __init__(self, arch: str):
        self.number = int(arch.removeprefix("sm_"))

    def get_current_device(self) -> int:
        return self.number  # Triton keeps what it knows of a target by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.number, 32)


def _run(call: Call) -> None:
    """Two chunks of the call, forward and backward: the first chunk begins the sum of dW, the second adds to it."""
    head = HeadInputs(
        _tensor(call.tokens, call.width, dtype=call.hidden),
        _tensor(call.vocabulary, call.width, dtype=call.weight),
        _tensor(call.tokens, dtype=torch.int64),
        bias=_tensor(call.vocabulary, dtype=call.weight) if call.bias else None,
        temperature=_tensor(call.tokens) if call.several else 1.0,
        softcap=30.0 if call.softcap else None,
    )
    entropy = call.entropy and call.gradients
    needs = NeededGradients(call.gradients, call.gradients, call.gradients and call.bias, entropy)
    workspace = TritonWorkspace(head, needs)
    formula, tokens = _formula(call)
    for rows in list(workspace.chunks(_tensor(call.tokens, dtype=torch.int64)))[:2]:
        statistics = workspace.forward(rows, keep=call.gradients)
        if not call.gradients:
            continue
        workspace.losses(formula, tokens, rows, statistics)
        g = _tensor(len(rows))
        workspace.backward(rows, statistics, Coefficients(g, g if entropy else None, g if call.z_loss else None))
    workspace.gradients.finish(_tensor(), (call.hidden, call.weight, call.weight))


def _formula(call: Call) -> tuple[LossFormula, TokenInputs]:
    vector = _tensor(call.tokens)
    given: dict[str, Any] = {"weights": vector, "mask": _tensor(call.tokens, dtype=torch.bool)}
    if call.entropy:
        given["entropy_coef"] = vector
    if not call.several:
        return LossFormula((upge.SFT(),)), TokenInputs(**given)
    given |= dict.fromkeys(("advantages", "old_logprobs", "ref_logprobs", "kl_coef", "importance"), vector)
    given["objective_index"] = _tensor(call.tokens, dtype=torch.int32)
    return LossFormula((upge.GRPO(), upge.SFT())), TokenInputs(**given)


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Its shape, strides and dtype, without memory. As allocated on a GPU, it begins at a multiple of 16 bytes."""
    return torch.empty(shape, dtype=dtype, device="meta")
