"""Compile every kernel of upge ahead of time, without a GPU, and show what became of it.

For each architecture, dtype and variant: registers, spills (stack bytes, STL and LDL instructions), shared memory and
the tensor-core instructions in the machine code. Fails where a kernel spills, or a GEMM lacks the architecture's
tensor-core instruction (fp32 GEMMs have none: they are exact). A kernel that is the same for several dtypes is compiled
once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # read when the kernels are defined

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from upge.backends import plan as plans
from upge.backends.triton.anchor import anchor_kernel
from upge.backends.triton.bias import bias_kernel
from upge.backends.triton.coefficient import coefficient_kernel
from upge.backends.triton.hidden import hidden_kernel
from upge.backends.triton.logit_gradient import logit_gradient_kernel
from upge.backends.triton.logits import logits_kernel
from upge.backends.triton.reanchor import reanchor_kernel
from upge.backends.triton.rows import rows_kernel
from upge.backends.triton.split import BLOCK as FINISH_BLOCK
from upge.backends.triton.split import finish_kernel
from upge.backends.triton.weight import weight_kernel

KERNELS = {
    "anchor": anchor_kernel, "bias": bias_kernel, "coefficient": coefficient_kernel, "finish": finish_kernel,
    "hidden": hidden_kernel, "logit_gradient": logit_gradient_kernel, "logits": logits_kernel,
    "reanchor": reanchor_kernel, "rows": rows_kernel, "weight": weight_kernel,
}  # fmt: skip
ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TENSOR_CORE = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA"}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
HALVES = {"high": "*i16", "low": "*i8"}
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}

INTEGER_POINTERS = {"targets": "*i64", "rows": "*i64", "redo": "*i8", "stable": "*i8", "objective_index": "*i32"}
FLOAT_SCALARS = ("softcap", "limit", "entropy_coef", "kl_coef")
INTEGER_SCALARS = ("M", "V", "D", "n", "tiles", "weight_stride", "exps_stride", "part_length")
ALIGNED = ("D", "n", "weight_stride", "exps_stride", "part_length")


@dataclass(frozen=True)
class Job:
    """One kernel to compile: the types and values of its arguments, and how many warps and stages."""

    kernel: str
    dtype: str
    variant: str
    constants: dict
    pointers: dict
    num_warps: int = 4
    num_stages: int = 3
    gemm: bool = False
    aligned: bool = True


@dataclass(frozen=True)
class Result:
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


def jobs(capability: tuple[int, int], dtypes: list[str]) -> Iterator[Job]:
    """Every kernel as the plan for each dtype has it, with the head's options where they change the code."""
    plain, full = {"HAS_BIAS": False, "HAS_SOFTCAP": False}, {"HAS_BIAS": True, "HAS_SOFTCAP": True}
    keep = {"KEEP": True, "REDO": False}
    block = {"ROWS": plans.ROWS, "BLOCK": plans.BLOCK}
    for dtype in dtypes:
        plan, odd = (plans.plan_for(DTYPES[dtype], capability, width) for width in (4096, 4095))
        head, exps = POINTERS[DTYPES[dtype]], POINTERS[plan.exps]
        pointers = {"hidden": head, "weight": head, "bias": head, "exps": exps}
        sums = {**pointers, "hidden": exps} | (HALVES if dtype != "float32" else {})

        def gemm(kernel, variant, constants, p=plan, types=pointers, dtype=dtype, aligned=True):
            tile = getattr(p, kernel)
            shape = {name: getattr(tile, name) for name in ("BM", "BN", "BK", "SPLIT")}
            constants = {"PRECISION": p.precision, **shape, **constants}
            return Job(kernel, dtype, variant, constants, types, tile.num_warps, tile.num_stages, True, aligned)

        has_low = {"HAS_LOW": dtype != "float32"}
        even, uneven = {**keep, "EVEN_D": True}, {**keep, "EVEN_D": False}
        yield gemm("logits", "", even | plain)
        yield gemm("logits", "no_grad", even | plain | {"KEEP": False})
        yield gemm("logits", "redo", even | plain | {"REDO": True})
        yield gemm("logits", "bias, softcap", even | full)
        yield gemm("hidden", "", {})
        yield gemm("weight", "", has_low, types=sums)
        yield gemm("logits", "odd D", uneven | plain, odd, aligned=False)
        yield gemm("hidden", "odd D", {}, odd, aligned=False)
        yield gemm("weight", "odd D", has_low, odd, sums, aligned=False)
        yield Job("anchor", dtype, "bias, softcap", full | block, pointers)
        if plan.exps == DTYPES[dtype]:  # fp16's E is fp32's
            yield Job("logit_gradient", dtype, "softcap", {"HAS_SOFTCAP": True, **block}, pointers)
            yield Job("bias", dtype, "", {"BM": 64, "BN": 128}, pointers)
        if dtype != "float32":
            out = {"out": "*i16" if dtype == "bfloat16" else head}
            yield Job("finish", dtype, "", {"BLOCK": FINISH_BLOCK}, HALVES | out)
    yield Job("reanchor", "", "", block, {})
    yield Job("rows", "", "", block, {})
    flags = dict.fromkeys(("HAS_INDEX", "HAS_ADVANTAGES", "HAS_OLD", "HAS_KL"), True)
    yield Job("coefficient", "", "all", {**flags, "BLOCK": 256}, {})


def compile_job(job: Job, arch: str) -> Result:
    function = KERNELS[job.kernel]
    names = function.arg_names
    signature = {}
    for name in names:
        if name in job.constants:
            signature[name] = "constexpr"
        elif name in FLOAT_SCALARS:
            signature[name] = "fp32"
        elif name in INTEGER_SCALARS:
            signature[name] = "i32"
        else:
            signature[name] = job.pointers.get(name) or INTEGER_POINTERS.get(name) or "*fp32"
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (i,): divisible
        for i, name in enumerate(names)
        if signature[name].startswith("*") or (name in ALIGNED and (job.aligned or name == "exps_stride"))
    }
    kernel = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=job.constants, attrs=attributes),
        target=GPUTarget("cuda", ARCHITECTURES[arch], 32),
        options={"num_warps": job.num_warps, "num_stages": job.num_stages},
    )
    usage, code = disassemble(kernel.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump does not tell the registers of {job.kernel}: {usage}")
    count = lambda pattern: len(re.findall(rf"\b{pattern}\b", code))
    stores, loads, stack = count("STL"), count("LDL"), int(found[2])
    narrow = count(r"LDG\.E\.U16(?:\.\w+)*")
    tensor_core = re.findall(rf"\b{TENSOR_CORE[arch]}\b", code)
    shared = kernel.metadata.shared
    faults = []
    if stack or stores or loads:
        faults.append("spills")
    if job.gemm and job.dtype != "float32" and not tensor_core:
        faults.append(f"no {TENSOR_CORE[arch]}")
    if job.gemm and job.aligned and narrow and not job.constants.get("HAS_BIAS"):
        faults.append("operands loaded entry by entry")
    if shared > SHARED_LIMIT[arch]:
        faults.append("too much shared memory")
    return Result(
        arch,
        job.dtype,
        job.kernel,
        job.variant,
        int(found[1]),
        stack,
        stores,
        loads,
        shared,
        len(tensor_core),
        tensor_core[0] if tensor_core else "",
        ", ".join(faults),
    )


def disassemble(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code, by the tools that triton ships."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = lambda *command: subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return run(tools / "cuobjdump", "-res-usage", file.name), run(tools / "nvdisasm", "-c", file.name)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench compile", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="compiling side by side")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args(argv)
    print(f"triton {triton.__version__}")
    columns = f"{'regs':>5}{'stack':>6}{'STL':>5}{'LDL':>5}{'shared':>8}  tensor core"
    print(f"{'arch':<7}{'dtype':<10}{'kernel':<16}{'variant':<15}{columns}")
    work = [(job, arch) for arch in args.arch for job in jobs(divmod(ARCHITECTURES[arch], 10), args.dtype)]
    results = []
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for r in pool.map(compile_job, *zip(*work, strict=True)):
            results.append(r)
            instruction = f"{r.tensor_core} {r.instruction}" if r.tensor_core else "-"
            numbers = f"{r.registers:>5}{r.stack:>6}{r.stores:>5}{r.loads:>5}{r.shared:>8}"
            fault = f" <- {r.fault}" if r.fault else ""
            print(f"{r.arch:<7}{r.dtype:<10}{r.kernel:<16}{r.variant:<15}{numbers}  {instruction}{fault}", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    bad = [r for r in results if r.fault]
    print(f"{len(results)} kernels, {len(bad)} with faults")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
