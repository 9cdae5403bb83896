"""Time, memory and error of the fused loss beside every other way to it that is installed.

Forward and backward with dW, one call after the other in one process, methods taking turns. Peak memory is what a call
adds beyond inputs, dh and dW. Errors are those of dh and dW against float64 on the first tokens. `gemms` is the time of
the three bare matrix products that any exact method has to do. A second table shows the time of the fused loss by the
share of tokens whose advantage is 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import upge  # noqa: F401  (fails early, and clearly, where it is not installed)

from . import _measure, _problem
from ._peers import PEERS, Unavailable
from ._problem import CASES, SHAPES, Problem

NO_SIGNAL = (0.0, 0.25, 0.5, 0.75)
# How far a method's loss may be from ours: logits rounded to bf16 or fp16 are off by 2^-8 or 2^-11 of 20 at most, each.
SAME_LOSS = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: list[str]) -> int:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    report = {
        "settings": {
            "shape": args.shape, "width": SHAPES[args.shape][0], "vocabulary": SHAPES[args.shape][1],
            "tokens": args.tokens, "dtype": args.dtype, "device": args.device, "repeats": args.repeats,
            "threads": torch.get_num_threads() if args.device == "cpu" else None,
            "error_tokens": min(args.error_tokens, args.tokens), "torch": torch.__version__,
            "processor": processor(args.device),
        },
        "methods": [row for case in args.cases for row in compare(args, case)],
        "no_signal": sweep(args),
    }  # fmt: skip
    print(table(report))
    if args.out:
        write(report, args.out)
    return 0


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench loss", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16" if cuda else "float32")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=10 if cuda else 3)
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    parser.add_argument("--error-tokens", type=int, default=256, help="tokens that are also done in float64")
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.png")
    args = parser.parse_args(argv)
    for name in ("tokens", "repeats", "threads", "error_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be at least 1, got {value}")
    if args.device == "cuda" and not cuda:
        parser.error("argument --device: PyTorch sees no GPU here")
    return args


def compare(args: argparse.Namespace, case: str) -> list[dict]:
    """One row a method: seconds, extra bytes, errors, or why there is no number."""
    problem = _problem.make(args.shape, args.tokens, DTYPES[args.dtype], args.device, case)
    methods: dict[str, Callable[[Problem], torch.Tensor]] = {"upge": Problem.ours}
    methods |= {name: PEERS[name] for name in args.peers}
    rows: dict[str, dict[str, Any]] = {name: {"case": case, "method": name} for name in methods}
    gradients = problem.hidden.nbytes + problem.weight.nbytes
    for name, method in methods.items():
        try:
            run = partial(step, method, problem)
            loss = float(run())
            clear(problem)
            ours = rows["upge"].setdefault("loss", loss)
            if not abs(loss - ours) <= SAME_LOSS[args.dtype]:
                raise Unavailable(f"its loss is {loss:.5f}, not {ours:.5f}")
            rows[name]["extra_bytes"] = _measure.extra_bytes(run, args.device, gradients)
        except Unavailable as why:
            rows[name]["unavailable"] = str(why)
        except torch.OutOfMemoryError:
            rows[name]["unavailable"] = "out of memory"
        except Exception as error:  # a peer that breaks must not end the comparison; it is shown with its reason
            if name == "upge":
                raise
            rows[name]["unavailable"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        clear(problem)
    times: dict[str, list[float]] = {name: [] for name in methods if "unavailable" not in rows[name]}
    gemms: list[float] = []
    for _ in range(args.repeats):
        gemms.append(_measure.seconds(lambda: _problem.bare_gemms(problem), args.device))
        for name, found in times.items():
            found.append(_measure.seconds(partial(step, methods[name], problem), args.device))
            clear(problem)
    short = problem.head(min(args.error_tokens, args.tokens))
    want = _measure.truth(short)
    for name, found in times.items():
        rows[name]["seconds"] = statistics.median(found)
        rows[name]["seconds_all"] = found
        rows[name]["dh_error"], rows[name]["dw_error"] = _measure.gradient_errors(methods[name], short, want)
    floor = {"case": case, "method": "gemms", "seconds": statistics.median(gemms), "seconds_all": gemms}
    return [floor, *rows.values()]


def sweep(args: argparse.Namespace) -> list[dict]:
    """The fused GRPO loss by the share of tokens without a signal, taking turns with the bare GEMMs."""
    problems = {
        share: _problem.make(args.shape, args.tokens, DTYPES[args.dtype], args.device, "grpo", share)
        for share in NO_SIGNAL
    }
    times: dict[float, list[float]] = {share: [] for share in NO_SIGNAL}
    gemms: list[float] = []
    for turn in range(args.repeats + 1):
        floor = _measure.seconds(lambda: _problem.bare_gemms(problems[0.0]), args.device)
        for share, problem in problems.items():
            taken = _measure.seconds(partial(step, Problem.ours, problem), args.device)
            clear(problem)
            if turn:  # the first one warms up
                times[share].append(taken)
        if turn:
            gemms.append(floor)
    base = statistics.median(gemms)
    return [
        {"no_signal": share, "seconds": statistics.median(found), "of_gemms": statistics.median(found) / base}
        for share, found in times.items()
    ]


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", information.read_text()) if information.exists() else []
    return names[0] if names else platform.machine()


def step(method: Callable[[Problem], torch.Tensor], problem: Problem) -> torch.Tensor:
    loss = method(problem)
    loss.backward()
    return loss.detach()


def clear(problem: Problem) -> None:
    problem.hidden.grad = problem.weight.grad = None


def table(report: dict) -> str:
    """The report as Markdown."""
    s = report["settings"]
    where = f"{s['processor']}, {s['threads']} threads" if s["threads"] else s["processor"]
    lines = [
        f"{s['shape']} (D {s['width']}, V {s['vocabulary']}), {s['tokens']} tokens, {s['dtype']}, {where}, "
        f"torch {s['torch']}; forward and backward, median of {s['repeats']}; errors on {s['error_tokens']} tokens",
        "",
        "| case | method | seconds | of GEMMs | extra MiB | error of dh | error of dW |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["methods"]:
        if "unavailable" in row:
            lines.append(f"| {row['case']} | {row['method']} | {row['unavailable']} | | | | |")
            continue
        floor = next(r["seconds"] for r in report["methods"] if r["case"] == row["case"] and r["method"] == "gemms")
        extra = f"{row['extra_bytes'] / 2**20:.0f}" if "extra_bytes" in row else ""
        errors = " | ".join(f"{row[k]:.1e}" if k in row else "" for k in ("dh_error", "dw_error"))
        numbers = f"{row['seconds']:.3f} | {row['seconds'] / floor:.2f} | {extra} | {errors}"
        lines.append(f"| {row['case']} | {row['method']} | {numbers} |")
    lines += ["", "| tokens without a signal | seconds | of GEMMs |", "|---|---|---|"]
    lines += [f"| {r['no_signal']:.0%} | {r['seconds']:.3f} | {r['of_gemms']:.2f} |" for r in report["no_signal"]]
    return "\n".join(lines)


def write(report: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(report) + "\n")
    draw(report, out.with_suffix(".png"))


def draw(report: dict, path: Path) -> None:
    """Time and memory by method, and time by the share of tokens without a signal."""
    from matplotlib.figure import Figure

    s = report["settings"]
    figure = Figure(figsize=(12, 4), layout="constrained")
    time_axes, memory_axes, share_axes = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    measured = [r for r in report["methods"] if "seconds" in r]
    methods = list(dict.fromkeys(r["method"] for r in measured))
    cases = list(dict.fromkeys(r["case"] for r in measured))
    for axes, key, unit in ((time_axes, "seconds", 1), (memory_axes, "extra_bytes", 2**20)):
        for i, case in enumerate(cases):
            found = [r for r in measured if r["case"] == case and key in r]
            places = [methods.index(r["method"]) + (i - (len(cases) - 1) / 2) * 0.25 for r in found]
            axes.barh(places, [max(r[key], 0) / unit for r in found], height=0.22, label=case)
        axes.set_yticks(range(len(methods)), methods if axes is time_axes else [""] * len(methods))
        axes.set_ylim(len(methods) - 0.5, -0.5)
    time_axes.set_xlabel("seconds, forward and backward")
    memory_axes.set_xlabel("extra memory, MiB")
    memory_axes.legend(frameon=False)
    share_axes.plot(
        [100 * r["no_signal"] for r in report["no_signal"]], [r["of_gemms"] for r in report["no_signal"]], "o-"
    )
    share_axes.set(xlabel="tokens with zero advantage, %", ylabel="time of upge / three bare GEMMs", ylim=(0, None))
    for axes in (time_axes, memory_axes, share_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{s['shape']}, {s['tokens']} tokens, {s['dtype']}, {s['processor']}")
    figure.savefig(path, dpi=120)
