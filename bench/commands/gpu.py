"""Within ten minutes on a GPU: check the Triton kernels, measure them, and report which targets are met.

Each stage is a process of its own with a time limit, so a crash or a hang costs one stage. The most wanted come first:
a smoke test at the real shape (one chunk of Qwen2.5-7B's head against float64); kernels compiled by several processes;
the bare GEMMs; the time of each kernel; the targets with 16,384 tokens (time beside three bare GEMMs, zero-advantage
shares, peak memory); checks in bf16; every kernel of the plan, as `upge tune` times them; every peer that is installed;
checks in fp16 and fp32; Llama-3.1-8B's head. DIR/gpu.json and DIR/gpu.md are written after every stage, so an
interrupted run keeps its results, also those of the stage that was running.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from pathlib import Path

import torch
from upge.backends import tuned
from upge.diagnosis.isolated import run_isolated
from upge.diagnosis.machine import Device, devices, nvidia_smi, version

from ..commit import last_commit
from ..gpu import rehearsal
from ..gpu.report import Report
from ..gpu.schedule import Stage, run_stages
from ..gpu.stages import Sizes, rehearsal_stages, stages
from ..losses.comparison import Settings
from ..losses.measure import processor
from ..losses.problem import CASES, SHAPES

RESULTS = Path("bench/results/gpu")
COMPILER_BYTES = 8 << 30  # of GPU memory that a compiling process takes at most: weight, its float32, dW, and a chunk


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    if args.rehearse:
        folder = args.output or Path(tempfile.mkdtemp(prefix="bench-gpu-rehearsal-"))
        print(f"the results of this rehearsal go to {folder}")
        return rehearse(folder, args.minutes)
    found = run_isolated(devices, 60)
    if not found.results:
        why = f" ({found.fault})" if found.fault else ""
        print(f"bench gpu: PyTorch sees no GPU here{why}; --rehearse runs all stages on a CPU", file=sys.stderr)
        return 2
    device: Device = found.results[0]
    settings = Settings(args.shape, args.tokens, "bfloat16", "cuda", args.repeats)
    compilers = max(1, min(8, os.cpu_count() or 1, device["free"] // COMPILER_BYTES))
    sizes = Sizes(settings, "llama-3.1-8b", list(CASES), 2048, None, [192, 100], 700, 1031, compilers)
    driver = nvidia_smi("driver_version")
    about = conditions(settings, device["name"], driver[0][0] if driver else "unknown")
    report = Report(args.output or RESULTS, about)
    return measure(stages(sizes), report, args.minutes, {}, expected=set())


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    default = f"default: {RESULTS}; for a rehearsal a new temporary folder"
    parser.add_argument("--output", type=Path, metavar="DIR", help=default)
    parser.add_argument("--minutes", type=float, default=9.5, help="a stage that is not done by then is ended")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-7b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rehearse", action="store_true", help="run all stages in tiny sizes on a CPU, as a test")
    args = parser.parse_args(argv)
    for name in ("tokens", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"argument --{name}: must be at least 1, got {getattr(args, name)}")
    if not 0 < args.minutes < math.inf:
        parser.error(f"argument --minutes: must be positive and finite, got {args.minutes:g}")
    if args.output is not None and args.output.exists() and not args.output.is_dir():
        parser.error(f"argument --output: must be a folder, got the file {args.output}")
    return args


def rehearse(folder: Path, minutes: float) -> int:
    settings = Settings("rehearsal", 128, "bfloat16", "cpu", repeats=1)
    sizes = Sizes(settings, "rehearsal", ["hpt"], 20, 64, [20], 40, 100, compilers=1)
    report = Report(folder, conditions(settings, processor("cpu"), "none"), rehearsal=True)
    expected = {"a crash", "a hang"}
    return measure(rehearsal_stages(sizes), report, minutes, rehearsal.ENVIRONMENT, expected)


def measure(
    planned: list[Stage], report: Report, minutes: float, environment: dict[str, str], expected: set[str]
) -> int:
    """Run the stages and print the report. The exit status: 0 if all checks held and only `expected` stages failed."""
    try:
        run_stages(planned, report, minutes, environment)
    except KeyboardInterrupt:
        print(f"bench gpu: interrupted; what was found is in {report.folder}", file=sys.stderr)
        return 130
    print(report.text())
    return 1 if report.wrong or set(report.faults) != expected else 0


def conditions(settings: Settings, gpu: str, driver: str) -> dict[str, object]:
    return {
        "GPU": gpu,
        "driver": driver,
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": last_commit("kernels"),
        "plan": "tuned, where upge tune was run" if tuned.entries() else "shipped",
        "shape": settings.shape,
        "tokens": settings.tokens,
        "dtype": settings.dtype,
        "repeats": settings.repeats,
    }
