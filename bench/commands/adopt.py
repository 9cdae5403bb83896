"""Whole training steps inside Hugging Face's Trainer and TRL, as they are and with the loss of upge, and hpt's own.

SFT by transformers' Trainer, SFT and GRPO by TRL's trainers, GRPO by hpt's: seconds and peak memory of a step, and how
far the gradients are apart. Models have random weights, and rollouts are made up, so generation is no part of a step.
All trainers of a case have the same rows, micro-batches and settings of the optimizer. Each runs in its own process,
and they take turns step by step.

The shape qwen2.5-1.5b is meant for a GPU, and has not run on one yet.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import torch

from ..adoption.comparison import Settings, compare
from ..adoption.report import table, write
from ..adoption.shapes import GROUP, SHAPES, Shape
from ..adoption.variants import CASES
from ..commit import last_commit
from ..losses.measure import processor
from ..output import output_path


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    shape = _shape(args)
    settings = Settings(shape, args.device, args.repeats, args.threads if args.device == "cpu" else None, args.seconds)
    report = {
        "settings": {
            "command": shlex.join(["python", "-m", "bench", "adopt", *argv]),
            "shape": args.shape,
            "vocabulary": shape.vocabulary,
            "width": shape.width,
            "layers": shape.layers,
            "head_share": shape.head_share,
            "rows": shape.rows,
            "length": shape.length,
            "micro_batches": shape.micro_batches,
            "dtype": shape.dtype,
            "device": args.device,
            "processor": processor(args.device),
            "threads": settings.threads,
            "repeats": args.repeats,
            "versions": {name: _version(name) for name in ("torch", "transformers", "trl", "upge", "hpt")},
            "commit": last_commit("kernels", "hpt"),
        },
        "rows": [row for case in args.cases for row in compare(case, settings)],
    }
    print(table(report))
    if args.out:
        write(report, args.out)
    return 1 if any("failed" in row for row in report["rows"]) else 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench adopt", description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--shape", choices=SHAPES, help="default: qwen2.5-1.5b on a GPU, small on a CPU")
    parser.add_argument("--rows", type=int, help="sequences of a step (default: as in the shape)")
    parser.add_argument("--length", type=int, help="trained tokens of a sequence (default: as in the shape)")
    parser.add_argument("--micro-batches", type=int, help="into how many a step is split (default: as in the shape)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, help="timed steps of each trainer (default 10 on a GPU, 5 on a CPU)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on a CPU (default 1)")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of a step (default 300)")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one repeat, as a test")
    parser.add_argument("--out", type=output_path, help="write OUT.json and OUT.md")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not cuda:
        parser.error("argument --device: PyTorch sees no GPU here")
    usual = ("tiny", 1) if args.quick else ("qwen2.5-1.5b", 10) if args.device == "cuda" else ("small", 5)
    args.shape = args.shape or usual[0]
    args.repeats = usual[1] if args.repeats is None else args.repeats
    for name in ("rows", "length", "micro_batches", "repeats", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least 1, got {value}")
    if not args.seconds > 0:
        parser.error(f"argument --seconds: must be above 0, got {args.seconds:g}")
    shape = _shape(args)
    if shape.rows % GROUP or shape.rows % shape.micro_batches:
        source = f" of the shape {args.shape}" if args.micro_batches is None else ""
        parser.error(
            f"argument --rows: must be a multiple of {GROUP}, the rollouts of a prompt, and of the "
            f"{shape.micro_batches} micro-batches{source}; got {shape.rows}"
        )
    return args


def _shape(args: argparse.Namespace) -> Shape:
    """The shape that was asked for, with the batch that was asked for."""
    given = {name: getattr(args, name) for name in ("rows", "length", "micro_batches")}
    return replace(SHAPES[args.shape], **{name: value for name, value in given.items() if value is not None})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
