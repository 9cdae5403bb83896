"""Within ten minutes on a GPU: check the Triton kernels, measure them, and report which targets are met.

Stages, most wanted first: checks in bf16 against float64; the targets on Qwen2.5-7B's head with 16,384 tokens (time
against three bare GEMMs, zero-advantage shares, peak memory); every peer that is installed; the time of each kernel;
other tilings; checks in fp32 and fp16; Llama-3.1-8B's head. DIR/gpu.json and DIR/gpu.md are written after every step,
so an interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from upge.diagnosis.checks import check_bits, check_values

from ..gpu.report import Report
from ..gpu.stages import measure_kernels, measure_peers, measure_second_head, measure_targets, measure_tilings
from ..losses.comparison import Settings
from ..losses.measure import processor
from ..losses.problem import CASES, SHAPES


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench/results/gpu"), metavar="DIR")
    parser.add_argument("--minutes", type=float, default=9.5, help="no stage starts that would end later")
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-7b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rehearse", action="store_true", help="run all stages in tiny sizes on a CPU, as a test")
    args = parser.parse_args(argv)
    if args.rehearse:
        settings = Settings("rehearsal", 512, "bfloat16", "cpu", repeats=1)
        return run(Report(args.output, args.minutes), settings, "rehearsal", (20,), {"n": 70, "v": 257})
    if not torch.cuda.is_available():
        print("bench gpu: PyTorch sees no GPU here", file=sys.stderr)
        return 2
    settings = Settings(args.shape, args.tokens, "bfloat16", "cuda", args.repeats)
    return run(Report(args.output, args.minutes), settings, "llama-3.1-8b", (192, 100), {})


def run(
    report: Report, settings: Settings, second_shape: str, widths: tuple[int, ...], check_sizes: dict[str, Any]
) -> int:
    report.data["settings"] = {
        "GPU": processor(settings.device),
        "torch": torch.__version__,
        "shape": settings.shape,
        "tokens": settings.tokens,
        "dtype": settings.dtype,
        "repeats": settings.repeats,
    }

    def check(dtype: str) -> None:
        for width in widths:
            for checked in (check_values, check_bits):
                for finding in checked(settings.device, dtype, width=width, **check_sizes):
                    report.add("checks", finding)
                    if not finding["held"]:
                        print(f"FAIL {finding['what']}: {finding['found']}", flush=True)

    report.stage("checks, bfloat16", 60, partial(check, "bfloat16"))
    report.stage("targets", 60, partial(measure_targets, report, settings))
    for case in CASES:
        report.stage(f"peers, {case}", 60, partial(measure_peers, report, settings, case))
    report.stage("kernels", 15, partial(measure_kernels, report, settings))
    report.stage("settings", 60, partial(measure_tilings, report, settings))
    report.stage("checks, float32", 45, partial(check, "float32"))
    report.stage("checks, float16", 45, partial(check, "float16"))
    report.stage(second_shape, 30, partial(measure_second_head, report, settings, second_shape))
    report.write()
    print((report.folder / "gpu.md").read_text())
    failed = [row for row in report.data["checks"] if not row["held"]]
    return 1 if failed or report.data["errors"] else 0
