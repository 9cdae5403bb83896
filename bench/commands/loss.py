"""Time, memory and error of the fused loss and of every other implementation that is installed.

Forward and backward with dW, in one process. In each round every method runs once, in random order; compared are the
best rounds. Peak memory is what a call adds to its inputs, dh and dW. Errors are those of dh and dW against float64 on
the first tokens. `gemms` is the time of the three bare matrix products that any exact method needs. A second table
shows the time of the fused loss by the share of tokens whose advantage is 0.
"""

from __future__ import annotations

import argparse
import shlex

import torch

from ..commit import last_commit
from ..losses.comparison import DTYPES, Settings, compare, sweep_no_signal
from ..losses.measure import clock_name, processor
from ..losses.peers import PEERS
from ..losses.problem import CASES, SHAPES
from ..losses.report import table, write
from ..output import output_path


def main(argv: list[str]) -> int:
    args = _arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(args.shape, args.tokens, args.dtype, args.device, args.repeats, args.error_tokens)
    width, vocabulary = SHAPES[args.shape]
    report = {
        "settings": {
            "command": shlex.join(["python", "-m", "bench", "loss", *argv]),
            "shape": args.shape,
            "width": width,
            "vocabulary": vocabulary,
            "tokens": args.tokens,
            "dtype": args.dtype,
            "device": args.device,
            "repeats": args.repeats,
            "clock": clock_name(args.device),
            "threads": torch.get_num_threads() if args.device == "cpu" else None,
            "error_tokens": min(args.error_tokens, args.tokens),
            "torch": torch.__version__,
            "processor": processor(args.device),
            "commit": last_commit("kernels"),
        },
        "methods": [row for case in args.cases for row in compare(settings, case, args.peers)],
        "no_signal": sweep_no_signal(settings),
    }
    print(table(report))
    if args.out:
        write(report, args.out)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench loss", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if cuda else "float32")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=10 if cuda else 3, help="rounds")
    parser.add_argument("--threads", type=int, help="threads of PyTorch on the CPU")
    parser.add_argument("--error-tokens", type=int, default=256, help="tokens that are also computed in float64")
    parser.add_argument("--out", type=output_path, help="write OUT.json, OUT.md and OUT.png")
    args = parser.parse_args(argv)
    for name in ("tokens", "repeats", "threads", "error_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least 1, got {value}")
    if args.device == "cuda" and not cuda:
        parser.error("argument --device: PyTorch sees no GPU here")
    return args
