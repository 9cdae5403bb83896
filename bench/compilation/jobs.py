"""What to compile: every kernel that the plans launch, and the candidates that `upge tune` may choose instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from upge.backends import plan as plans
from upge.backends.plan import Gemm

from .launches import CAPABILITIES, Call, Launch, launches

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# By the dtype in which hidden states and weight are multiplied: theirs.
DTYPES = {
    "bfloat16": ((BF16, BF16),),
    "float16": ((FP16, FP16),),
    "float32": ((FP32, FP32), (BF16, FP32), (FP32, BF16), (FP32, FP16)),
}
SHORT = {BF16: "bf16", FP16: "fp16", FP32: "fp32"}
# What changes the kernels of a call, by name. A width that 64 does not divide has kernels of its own, and so has one
# whose rows begin at addresses that are no multiple of 16.
VARIANTS: dict[str, dict[str, int | bool]] = {
    "": {},
    "no_grad": {"gradients": False},
    "bias": {"bias": True},
    "softcap": {"softcap": True},
    "entropy": {"entropy": True},
    "softcap, entropy": {"softcap": True, "entropy": True},
    "all options": {"bias": True, "softcap": True, "entropy": True, "z_loss": True, "several": True},
    "D 3600": {"width": 3600},
    "D 4095": {"width": 4095},
}
# Of the variants that differ only before or after the main loop, the other dtypes have the extremes.
OTHER_VARIANTS: tuple[str, ...] = ("", "no_grad", "all options", "D 4095")
MIXED_VARIANTS: tuple[str, ...] = ("", "all options")


@dataclass(frozen=True)
class Job:
    """A kernel to compile, and the first call that launches it.

    candidate: whether it is not shipped, only timed by `upge tune`.
    """

    arch: str
    dtype: str
    variant: str
    launch: Launch
    candidate: bool = False


def jobs(arch: str, dtypes: list[str]) -> list[Job]:
    """Each kernel once, the shipped ones first."""
    found: dict[str, Job] = {}
    for job in [*_shipped(arch, dtypes), *_candidates(arch, dtypes)]:
        found.setdefault(job.launch.key, job)
    return list(found.values())


def _shipped(arch: str, dtypes: list[str]) -> Iterator[Job]:
    for dtype in dtypes:
        for hidden, weight in DTYPES[dtype]:
            name, variants = dtype, tuple(VARIANTS) if dtype == "bfloat16" else OTHER_VARIANTS
            if hidden != weight:
                name, variants = f"{SHORT[hidden]} {SHORT[weight]}", MIXED_VARIANTS
            for variant in variants:
                for launch in launches(Call(hidden, weight, **VARIANTS[variant]), arch):  # type: ignore[arg-type]
                    yield Job(arch, name, variant, launch)


def _candidates(arch: str, dtypes: list[str]) -> Iterator[Job]:
    for dtype in dtypes:
        hidden, weight = DTYPES[dtype][0]
        for name, gemms in plans.choices(hidden, weight, CAPABILITIES[arch]).items():
            for gemm in gemms[1:]:
                if not gemm.takes(Call(hidden, weight).width, aligned=True):
                    continue
                for launch in launches(Call(hidden, weight), arch, {name: gemm}):
                    if _computes(launch, name, gemm):
                        yield Job(arch, dtype, "", launch, candidate=True)


def _computes(launch: Launch, name: str, gemm: Gemm) -> bool:
    suffix = "_descriptors_kernel" if gemm.kernel == "descriptors" else "_kernel"
    return launch.kernel == name + suffix
