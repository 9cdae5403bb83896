"""Compile every kernel of upge without a GPU, and show registers, spills, instructions and tensor-core instructions.

The kernels are those that the plan of each architecture and dtype launches, as Triton specialises them at run time;
after them come the candidates that `upge tune` may choose instead. For each: registers, bytes of stack (spilled
registers) and shared memory; of a GEMM also the instructions that a warp issues in a step of the main loop, how many of
them multiply, what it issues before and after a tile's steps, how operands are loaded, and the tensor-core instruction.
bench/roofline/instructions.py says what is counted. Fails if a kernel spills, if a GEMM lacks the tensor-core
instruction of its architecture (fp32 GEMMs have none: they are exact), or if a kernel with tensor descriptors does not
load by TMA. A kernel that several dtypes or variants share is compiled once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import triton

from ..compilation.compiler import Compiled, compile_job
from ..compilation.jobs import DTYPES, jobs
from ..compilation.launches import CAPABILITIES

COLUMNS = (
    "step: instructions of a warp in a step of the main loop; multiply: those of them that multiply; "
    "start, epilogue: before and after a tile's steps"
)
HEADER = (
    f"{'arch':<7}{'dtype':<10}{'kernel':<19}{'variant':<20}{'tile':<15}{'regs':>5}{'stack':>6}{'shared':>8}"
    f"{'step':>6}{'multiply':>9}{'start':>6}{'epilogue':>9}  {'loads':<8}tensor core"
)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench compile", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=CAPABILITIES, default=list(CAPABILITIES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--kernel", nargs="+", default=[""], help="only kernels whose names begin like this")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="compiling at once")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args(argv)
    if args.processes < 1:
        parser.error(f"argument --processes: must be at least 1, got {args.processes}")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"argument --json: there is no folder {args.json.parent}")
    work = [job for arch in args.arch for job in jobs(arch, args.dtype)]
    known = sorted({job.launch.kernel for job in work})
    for begin in args.kernel:
        if not any(name.startswith(begin) for name in known):
            parser.error(f"argument --kernel: no kernel begins with {begin!r}; there are {', '.join(known)}")
    work = [job for job in work if job.launch.kernel.startswith(tuple(args.kernel))]
    print(f"triton {triton.__version__}\n{COLUMNS}\n{HEADER}")
    results = []
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for result in pool.map(compile_job, work):
            results.append(result)
            print(_line(result), flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    faulty = [result for result in results if result.fault]
    print(f"{len(results)} kernels, {len(faulty)} with faults")
    return 1 if faulty else 0


def _line(result: Compiled) -> str:
    variant = "(candidate)" if result.candidate else result.variant
    line = (
        f"{result.arch:<7}{result.dtype:<10}{result.kernel:<19}{variant:<20}{result.tile:<15}"
        f"{result.registers:>5}{result.stack:>6}{result.shared:>8}"
    )
    if result.counts:
        c = result.counts
        line += f"{c.step:>6}{c.multiplications:>9}{c.start:>6}{c.epilogue:>9}  {c.load:<8}{result.instruction or '-'}"
    return line + (f" <- {result.fault}" if result.fault else "")
