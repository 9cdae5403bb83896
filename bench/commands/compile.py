"""Compile every kernel of upge without a GPU, and show registers, spills and tensor-core instructions.

For each architecture, dtype and variant: registers, spills (stack bytes, STL and LDL instructions), shared memory, and
the tensor-core instructions in the machine code. Fails if a kernel spills, or if a GEMM lacks the tensor-core
instruction of its architecture (fp32 GEMMs have none: they are exact). A kernel that is the same for several dtypes is
compiled once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from ..compilation.compiler import ARCHITECTURES, Compiled, compile_job
from ..compilation.jobs import DTYPES, jobs


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench compile", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="compiling at once")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args(argv)
    print(f"triton {version('triton')}")
    columns = f"{'regs':>5}{'stack':>6}{'STL':>5}{'LDL':>5}{'shared':>8}  tensor core"
    print(f"{'arch':<7}{'dtype':<10}{'kernel':<16}{'variant':<17}{columns}")
    work = [(job, arch) for arch in args.arch for job in jobs(divmod(ARCHITECTURES[arch], 10), args.dtype)]
    results = []
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(compile_job, *zip(*work, strict=True)):
            results.append(result)
            print(_line(result), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    faulty = [result for result in results if result.fault]
    print(f"{len(results)} kernels, {len(faulty)} with faults")
    return 1 if faulty else 0


def _line(result: Compiled) -> str:
    instruction = f"{result.tensor_core} {result.instruction}" if result.tensor_core else "-"
    numbers = f"{result.registers:>5}{result.stack:>6}{result.stores:>5}{result.loads:>5}{result.shared:>8}"
    fault = f" <- {result.fault}" if result.fault else ""
    return f"{result.arch:<7}{result.dtype:<10}{result.kernel:<16}{result.variant:<17}{numbers}  {instruction}{fault}"
