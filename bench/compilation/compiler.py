"""Compile one kernel for one architecture without a GPU, and read its machine code."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..roofline.instructions import Counts, count
from .jobs import Job
from .launches import Launch

TENSOR_CORE = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA"}
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}
GEMM = re.compile("logits_kernel|logits_d|hidden_kernel|hidden_d|weight|redo")


@dataclass(frozen=True)
class Compiled:
    """What became of a job: registers, bytes of stack (registers that were spilled), shared memory.

    tile, counts, instruction: of a GEMM: BM x BN x BK and the parts of its epilogue, what its main loop and tiles cost,
                               and its tensor-core instruction. None where there is none.
    fault: what is wrong with it, "" if nothing is.
    """

    arch: str
    dtype: str
    kernel: str
    variant: str
    candidate: bool
    registers: int
    stack: int
    shared: int
    tile: str
    counts: Counts | None
    instruction: str | None
    fault: str


def compile_job(job: Job) -> Compiled:
    kernel = _compile(job.launch, job.arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        gemm = GEMM.match(job.launch.kernel) is not None
        code = _run("nvdisasm", "-c", file.name) if gemm else ""
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no registers for {job.launch.kernel}: {usage}")
    registers, stack, shared = int(found[1]), int(found[2]), kernel.metadata.shared
    tensor_core = re.search(rf"\b{TENSOR_CORE[job.arch]}\b", code)
    multiplication = re.compile(TENSOR_CORE[job.arch] if tensor_core else "FFMA")
    counts = count(code, lambda name: multiplication.match(name) is not None)
    first = ["first chunk"] if job.launch.options.get("FIRST") else []
    faults = [*(["spills"] if stack else []), *(["too much shared memory"] if shared > SHARED_LIMIT[job.arch] else [])]
    return Compiled(
        arch=job.arch,
        dtype=job.dtype,
        kernel=job.launch.kernel.removesuffix("_kernel"),
        variant=", ".join([*filter(None, [job.variant]), *first]),
        candidate=job.candidate,
        registers=registers,
        stack=stack,
        shared=shared,
        tile=_tile(job.launch) if gemm else "",
        counts=counts,
        instruction=tensor_core[0] if tensor_core else None,
        fault=", ".join(faults + (_gemm_faults(job, tensor_core is not None, counts, code) if gemm else [])),
    )


def _gemm_faults(job: Job, tensor_core: bool, counts: Counts | None, code: str) -> list[str]:
    exact = job.dtype not in ("bfloat16", "float16")
    # Rows of an odd width begin anywhere, and a bias is loaded entry by entry.
    whole_rows = "D 4095" not in job.variant and not job.launch.options.get("HAS_BIAS")
    descriptors = "descriptors" in job.launch.kernel
    found = {
        "no main loop": counts is None,
        f"no {TENSOR_CORE[job.arch]}": not exact and not tensor_core,
        "float32 rounded for tensor cores": exact and tensor_core,
        "no UTMALDG": descriptors and (counts is None or counts.load != "UTMALDG"),
        "operands loaded entry by entry": whole_rows and re.search(r"\bLDG\.E\.U16\b", code) is not None,
    }
    return [fault for fault, there in found.items() if there]


def _tile(launch: Launch) -> str:
    sizes = "x".join(str(launch.options[size]) for size in ("BM", "BN", "BK"))
    parts = launch.options.get("PARTS", 1)
    return f"{sizes}/{parts}" if parts > 1 else sizes


def _compile(launch: Launch, arch: str) -> Any:
    function = getattr(importlib.import_module(launch.module), launch.kernel)
    return triton.compile(
        ASTSource(fn=function, signature=launch.signature, constexprs=launch.constants, attrs=launch.attributes),
        target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
        options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
    )


def _run(tool: str, *arguments: str) -> str:
    """What one of the tools prints that ship with Triton."""
    command: list[str | Path] = [Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
