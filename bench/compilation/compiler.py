"""Compile one kernel for one architecture without a GPU, and read its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from upge.backends.triton.kernels.anchor import anchor_kernel
from upge.backends.triton.kernels.bias import bias_kernel
from upge.backends.triton.kernels.coefficient import coefficient_kernel
from upge.backends.triton.kernels.hidden import hidden_kernel
from upge.backends.triton.kernels.logit_gradient import logit_gradient_kernel
from upge.backends.triton.kernels.logits import logits_kernel
from upge.backends.triton.kernels.reanchor import reanchor_kernel
from upge.backends.triton.kernels.row_factor import row_factor_kernel
from upge.backends.triton.kernels.rows import rows_kernel
from upge.backends.triton.kernels.split import finish_kernel
from upge.backends.triton.kernels.weight import weight_kernel

from .jobs import Job

KERNELS = {
    "anchor": anchor_kernel,
    "bias": bias_kernel,
    "coefficient": coefficient_kernel,
    "finish": finish_kernel,
    "hidden": hidden_kernel,
    "logit_gradient": logit_gradient_kernel,
    "logits": logits_kernel,
    "reanchor": reanchor_kernel,
    "row_factor": row_factor_kernel,
    "rows": rows_kernel,
    "weight": weight_kernel,
}
ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
TENSOR_CORE = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA"}
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}

INTEGER_POINTERS = {
    "targets": "*i64",
    "rows": "*i64",
    "redo": "*i8",
    "top1": "*i8",
    "stable": "*i8",
    "objective_index": "*i32",
}
FLOAT_SCALARS = ("softcap", "inverse_softcap", "limit", "max_log_ratio")
INTEGER_SCALARS = ("M", "V", "D", "n", "tiles", "weight_stride", "exps_stride", "part_length")
ALIGNED = ("D", "n", "weight_stride", "exps_stride", "part_length")


@dataclass(frozen=True)
class Compiled:
    """What became of a job: registers, stack bytes, spill instructions, shared memory, tensor-core instructions.

    `fault` says what is wrong with it, "" if nothing is.
    """

    arch: str
    dtype: str
    kernel: str
    variant: str
    registers: int
    stack: int
    stores: int
    loads: int
    shared: int
    tensor_core: int
    instruction: str
    fault: str


def compile_job(job: Job, arch: str) -> Compiled:
    kernel = _compile(job, arch)
    usage, code = _disassemble(kernel.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump reports no registers for {job.kernel}: {usage}")
    stack, stores, loads = int(found[2]), _count("STL", code), _count("LDL", code)
    tensor_core = re.findall(rf"\b{TENSOR_CORE[arch]}\b", code)
    shared = kernel.metadata.shared
    faults = []
    if stack or stores or loads:
        faults.append("spills")
    if job.gemm and job.dtype != "float32" and not tensor_core:
        faults.append(f"no {TENSOR_CORE[arch]}")
    if job.dtype == "float32" and tensor_core:
        faults.append("float32 rounded for tensor cores")
    if job.gemm and job.aligned and not job.constants.get("HAS_BIAS") and _count(r"LDG\.E\.U16(?:\.\w+)*", code):
        faults.append("operands loaded entry by entry")
    if shared > SHARED_LIMIT[arch]:
        faults.append("too much shared memory")
    return Compiled(
        arch=arch,
        dtype=job.dtype,
        kernel=job.kernel,
        variant=job.variant,
        registers=int(found[1]),
        stack=stack,
        stores=stores,
        loads=loads,
        shared=shared,
        tensor_core=len(tensor_core),
        instruction=tensor_core[0] if tensor_core else "",
        fault=", ".join(faults),
    )


def _compile(job: Job, arch: str) -> Any:
    function = KERNELS[job.kernel]
    names = function.arg_names
    signature = {name: _argument_type(name, job) for name in names}
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (i,): divisible
        for i, name in enumerate(names)
        if signature[name].startswith("*") or (name in ALIGNED and (job.aligned or name == "exps_stride"))
    }
    return triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=job.constants, attrs=attributes),
        target=GPUTarget("cuda", ARCHITECTURES[arch], 32),
        options={"num_warps": job.num_warps, "num_stages": job.num_stages},
    )


def _argument_type(name: str, job: Job) -> str:
    if name in job.constants:
        return "constexpr"
    if name in FLOAT_SCALARS:
        return "fp32"
    if name in INTEGER_SCALARS:
        return "i32"
    return job.pointers.get(name) or INTEGER_POINTERS.get(name) or "*fp32"


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code, by the tools that ship with Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _run(tools / "cuobjdump", "-res-usage", file.name), _run(tools / "nvdisasm", "-c", file.name)


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _count(pattern: str, code: str) -> int:
    return len(re.findall(rf"\b{pattern}\b", code))
