"""Predict the time of each kernel on a GPU from its machine code, beside what was measured where results are committed.

The GEMMs are compiled for sm_90, and their instructions counted as in `bench compile`. A roofline model turns them into
times (bench/roofline/model.py), in three variants of what is assumed; what is given and what is assumed
(bench/roofline/rates.py) is printed with the result. Nothing here is a measurement, except the last column: it is read
from bench/results/gpu/gpu.json if that holds the same head, tokens, dtype and GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
import triton
from upge.backends import plan as plans
from upge.heads import HEADS

from ..compilation.compiler import Compiled, compile_job
from ..compilation.jobs import Job
from ..compilation.launches import CAPABILITIES, Call, launches
from ..roofline.measured import BARE, SUM, read_measured
from ..roofline.model import Predicted, Program, bare_seconds, chunks_of, predict
from ..roofline.rates import (
    ASSUMED,
    FLOPS_PER_CYCLE,
    GPUS,
    MEANINGS,
    REGISTERS,
    SCHEDULERS,
    SHARED_BYTES,
    TF32_FLOPS_PER_CYCLE,
    Gpu,
)

ARCH = "sm_90"
RESULTS = Path(__file__).parents[1] / "results/gpu/gpu.json"
COLUMNS = """\
Instructions of one warp: step, the shortest way around the main loop; start, before a tile's first step; epilogue,
after its last. Round trips: loads that the epilogue waits for one after the other (bench/roofline/instructions.py)."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench model", description=__doc__)
    parser.add_argument("--head", choices=HEADS, default="qwen2.5-7b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    args = parser.parse_args(argv)
    if args.tokens < 1:
        parser.error(f"--tokens: must be at least 1; got {args.tokens}")
    vocabulary, width = HEADS[args.head]
    dtype = getattr(torch, args.dtype)
    plan = plans.plan_for(dtype, dtype, CAPABILITIES[ARCH], width)
    compiled = _compiled(Call(dtype, dtype, width, vocabulary, args.tokens), args.dtype)
    programs = {name: Program(c.counts, c.registers, c.shared) for name, c in compiled.items() if c.counts}
    gpu = GPUS[args.gpu]
    predicted = {
        name: predict(plan, programs, args.tokens, vocabulary, width, gpu, assumed) for name, assumed in ASSUMED.items()
    }
    bare = {name: bare_seconds(args.tokens, vocabulary, width, assumed) for name, assumed in ASSUMED.items()}
    kernels = [kernel.kernel for kernel in predicted["central"]]
    measured = read_measured(RESULTS, args.head, args.tokens, args.dtype, gpu.device, kernels)
    print(f"{args.head} (V {vocabulary:,}, D {width:,}), {args.tokens:,} tokens, {args.dtype}, {gpu.name}")
    print(f"Predicted from the machine code of triton {triton.__version__}; not measured.\n")
    print("\n".join(_table(predicted, bare, measured.milliseconds)))
    if measured.note:
        print(f"No measured times: {measured.note}. A column of them needs those on {gpu.device}.")
    print(f"\n{'GEMM':<20}{'tile':<16}{'registers':>9}{'step':>6}{'start':>6}{'epilogue':>9}{'round trips':>12}")
    for name, c in compiled.items():
        if c.counts:
            numbers = f"{c.counts.step:>6}{c.counts.start:>6}{c.counts.epilogue:>9}{c.counts.round_trips:>12}"
            print(f"{name:<20}{c.tile:<16}{c.registers:>9}{numbers}")
    print(COLUMNS)
    print("\ngiven, by the data sheet and the plan")
    for meaning, value in _given(plan, args.tokens, vocabulary, width, gpu).items():
        print(f"{meaning:<62}{value:>12,.10g}")
    print(f"\n{'assumed':<62}" + "".join(f"{name:>12}" for name in ASSUMED))
    for field, meaning in MEANINGS.items():
        values = "".join(f"{getattr(assumed, field):>12.4g}" for assumed in ASSUMED.values())
        print(f"{meaning:<62}{values}")
    return 0


def _compiled(call: Call, dtype: str) -> dict[str, Compiled]:
    """The GEMMs of a call, by name."""
    found = {}
    for launch in launches(call, ARCH):
        name = launch.kernel.removesuffix("_kernel").removesuffix("_descriptors")
        if name in plans.GEMMS:
            first = ", first chunk" if launch.options.get("FIRST") else ""
            found[name + first] = compile_job(Job(ARCH, dtype, "", launch))
    return found


def _given(plan: plans.Plan, tokens: int, vocabulary: int, width: int, gpu: Gpu) -> dict[str, float]:
    rows, chunks = chunks_of(plan, tokens, vocabulary, width)
    return {
        "multiprocessors": gpu.multiprocessors,
        "FLOP per cycle and multiprocessor, bf16 and fp16": FLOPS_PER_CYCLE,
        "FLOP per cycle and multiprocessor, tf32": TF32_FLOPS_PER_CYCLE,
        "schedulers of a multiprocessor": SCHEDULERS,
        "registers of a multiprocessor": REGISTERS,
        "bytes of shared memory of a multiprocessor": SHARED_BYTES,
        "bytes per second of memory": gpu.bandwidth,
        "rows of a chunk": rows,
        "chunks": chunks,
        "splits of the sum over the vocabulary in dh": plan.hidden.SPLITS,
    }


def _table(
    predicted: Mapping[str, list[Predicted]], bare: Mapping[str, float], measured: Mapping[str, float]
) -> list[str]:
    def line(name: str, calls: object, values: list[float], unit: str, last: str = "") -> str:
        return f"{name:<18}{calls:>6}" + "".join(f"{value:>12.{unit}}" for value in values) + f"{last:>10}"

    def found(name: str) -> str:
        return f"{measured[name]:.2f}" if name in measured else "-"

    lines = [f"{'milliseconds':<18}{'calls':>6}" + "".join(f"{name:>12}" for name in predicted) + f"{'measured':>10}"]
    for kernels in zip(*predicted.values(), strict=True):
        name = kernels[0].kernel
        lines.append(line(name, kernels[0].calls, [1e3 * kernel.seconds for kernel in kernels], "2f", found(name)))
    totals = [sum(kernel.seconds for kernel in kernels) for kernels in predicted.values()]
    lines.append(line(SUM, "", [1e3 * total for total in totals], "2f", found(SUM)))
    lines.append(line(BARE, "", [1e3 * seconds for seconds in bare.values()], "2f", found(BARE)))
    ratios = [total / seconds for total, seconds in zip(totals, bare.values(), strict=True)]
    measured_ratio = f"{measured[SUM] / measured[BARE]:.3f}" if {SUM, BARE} <= measured.keys() else "-"
    lines.append(line("ratio", "", ratios, "3f", measured_ratio))
    return lines
