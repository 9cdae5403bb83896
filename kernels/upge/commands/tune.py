"""Time the kernels of each GEMM on this GPU, and keep the fastest for later calls.

For one head (V entries of the vocabulary, width D) and dtype, all kernels of the plan are timed on one chunk of tokens,
beside the matrix product of the same shape by the vendor's BLAS. The fastest that is right is written to a file in the
user's cache, which the loss reads from then on; deleting the file brings the shipped plan back. A shipped kernel is
replaced only by one that is at least 1% faster. Results of the loss keep their error bounds, but not their last bits.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from ..backends import plan as plans
from ..backends import tuned
from ..backends.plan import Gemm
from ..diagnosis.checks import DTYPES
from ..diagnosis.isolated import run_isolated
from ..heads import HEADS
from ..tuning.measure import time_candidates

LIMIT = 300.0  # seconds for the kernels of one GEMM, most of them for compiling
WORTH = 0.99  # of the shipped kernel's time


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not plans.INTERPRETED:
        print("upge tune: PyTorch sees no GPU here", file=sys.stderr)
        return 2
    try:
        with tuned.writing():  # before minutes of timing
            pass
    except (OSError, RuntimeError) as error:
        print(f"upge tune: the file for the results cannot be written: {error}", file=sys.stderr)
        return 2
    vocabulary, width = options.shape
    best: dict[str, Gemm] = {}
    for name in plans.GEMMS:
        outcome = run_isolated(
            time_candidates, LIMIT, name=name, vocabulary=vocabulary, width=width, dtype=options.dtype, device=device,
            repeats=options.repeats, rows=options.rows,
        )  # fmt: skip
        print("\n".join(table(name, outcome.results)), flush=True)
        if outcome.fault:
            print(f"  {outcome.fault}: {outcome.output}", flush=True)
        if chosen := choose(outcome.results):
            best[name] = chosen
    if not best:
        print("upge tune: no kernel could be timed; nothing is written", file=sys.stderr)
        return 1
    key = tuned.key_for(torch.device(device), DTYPES[options.dtype], vocabulary, width)
    file = tuned.write(key, best)
    print(f"the best kernels are in {file}")
    return 0 if len(best) == len(plans.GEMMS) else 1


def choose(rows: list[dict[str, Any]]) -> Gemm | None:
    """The fastest of the measured kernels; the shipped one unless another is clearly faster."""
    timed = [row for row in rows if row["gemm"] is not None and "seconds" in row]
    if not timed:
        return None
    best = min(timed, key=lambda row: row["seconds"])
    for row in timed:
        if row["shipped"] and best["seconds"] > WORTH * row["seconds"]:
            best = row
    return Gemm(**best["gemm"])


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """One line per kernel: milliseconds, best and slowest, and times the bare product."""
    bare = next((row["seconds"] for row in rows if row["gemm"] is None), None)
    chosen = choose(rows)
    lines = [name]
    for row in rows:
        label = "the bare product" if row["gemm"] is None else describe(Gemm(**row["gemm"]))
        if "fault" in row:
            lines.append(f"  {label:<52} {row['fault']}")
            continue
        times = f"{1e3 * row['seconds']:9.3f} ms (slowest {1e3 * row['slowest']:.3f}) {row['tflops']:7.1f} TFLOP/s"
        ratio = "" if bare is None else f" {row['seconds'] / bare:6.3f} x"
        mark = " <- best" if row["gemm"] is not None and Gemm(**row["gemm"]) == chosen else ""
        lines.append(f"  {label:<52} {times}{ratio}{mark}")
    return lines


def describe(gemm: Gemm) -> str:
    if gemm.kernel == "matmul":
        return f"torch.mm in blocks of {gemm.BM} rows"
    splits = f", {gemm.SPLITS} splits" if gemm.SPLITS > 1 else ""
    tile = f"{gemm.BM} x {gemm.BN} x {gemm.BK}"
    return f"{gemm.kernel} {tile}, {gemm.num_stages} stages, {gemm.PARTS} parts{splits}"


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m upge tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", nargs="*", type=int, metavar="V D", help="entries of the vocabulary and width")
    parser.add_argument("--head", choices=HEADS, help="those of a model (default qwen2.5-7b)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of hidden states and weight")
    parser.add_argument("--repeats", type=int, default=20, help="runs of each kernel (default 20)")
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)  # for tests
    options = parser.parse_args(arguments)
    if options.size and options.head:
        parser.error("give either V and D or --head")
    if options.size and (len(options.size) != 2 or min(options.size) < 1):
        parser.error(f"V D: must be two numbers of at least 1; got {' '.join(map(str, options.size))}")
    if options.repeats < 1:
        parser.error(f"--repeats: must be at least 1; got {options.repeats}")
    options.shape = tuple(options.size) or HEADS[options.head or "qwen2.5-7b"]
    return options
