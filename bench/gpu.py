"""One command for a GPU, within ten minutes: check the Triton kernels on it, measure them, say what meets its target.

Stages, most wanted first: bf16 checks against float64, the targets on Qwen2.5-7B's head with 16,384 tokens (time
against three bare GEMMs, zero-advantage shares, peak memory), every peer installed, the time of each kernel, settings
to choose among, fp32 and fp16 checks, Llama-3.1-8B's head. DIR/gpu.json and DIR/gpu.md are written after every step, so
whatever ends the run leaves all that came before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import upge
from torch import Tensor
from upge.backends import plan as plans

from . import _measure, _problem, loss
from ._peers import PEERS
from ._problem import Problem

# Against float64: log-probabilities absolutely, gradients by norm. The project's bounds.
BOUNDS = {torch.float32: (2e-5, 2e-5), torch.bfloat16: (1e-4, 1e-2), torch.float16: (1e-4, 1e-2)}
MAX_OF_GEMMS, MAX_OF_GEMMS_AT_HALF, MAX_EXTRA_BYTES = 1.15, 0.6, 1.5 * 2**30

# Other settings of bf16's plan, one change each.
SETTINGS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "chunks of 400 MiB": {"CHUNK_BYTES": 400 << 20},
    "chunks of 1600 MiB": {"CHUNK_BYTES": 1600 << 20},
    "dh in 1 part": {"HIDDEN_PARTS": 1},
    "dh in 2 parts": {"HIDDEN_PARTS": 2},
    "dh in 8 parts": {"HIDDEN_PARTS": 8},
    "128 x 256, 4 stages": {"WIDE": plans.Tile(128, 256, 64, 8, 4, SPLIT=True)},
    "128 x 128": {"WIDE": plans.Tile(128, 128, 64, 8, 3)},
    "128 x 128, 4 warps, 4 stages": {"WIDE": plans.Tile(128, 128, 64, 4, 4)},
    "256 x 128": {"WIDE": plans.Tile(256, 128, 64, 8, 3)},
}


class Report:
    """What was found so far, on disk after every change."""

    def __init__(self, folder: Path, minutes: float):
        self.folder = folder
        self.end = time.monotonic() + 60 * minutes
        self.data: dict[str, Any] = {
            "settings": {}, "checks": [], "targets": [], "methods": [], "no_signal": [], "kernels": [], "plans": [],
            "errors": [],
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, *rows: dict) -> None:
        self.data[part] += rows
        self.write()

    def write(self) -> None:
        (self.folder / "gpu.json").write_text(json.dumps(self.data, indent=1) + "\n")
        (self.folder / "gpu.md").write_text(markdown(self.data) + "\n")

    def stage(self, name: str, seconds: float, run: Callable[[], object]) -> None:
        """A stage that breaks is recorded, and the next one runs; one that the time left does not fit is left out."""
        left = self.end - time.monotonic()
        print(f"-- {name} ({left:.0f} s left)", flush=True)
        try:
            if left < seconds:
                raise TimeoutError(f"needs about {seconds:.0f} s, {left:.0f} s are left")
            run()
        except Exception as error:
            traceback.print_exc()
            self.add("errors", {"stage": name, "error": f"{type(error).__name__}: {error}"[:500]})


def markdown(data: dict) -> str:
    lines = [", ".join(f"{k} {v}" for k, v in data["settings"].items()), ""]
    lines += ["| target | wanted | measured | |", "|---|---|---|---|"]
    for r in data["targets"]:
        lines.append(f"| {r['what']} | {r['wanted']} | {r['measured']} | {'met' if r['met'] else '**missed**'} |")
    failed = [r for r in data["checks"] if not r["held"]]
    lines += ["", f"{len(data['checks'])} checks, {len(failed)} failed", *(f"- {r['what']}" for r in failed), ""]
    lines += ["| shape | case | method | ms | of GEMMs | extra MiB | error of dh | error of dW |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for r in data["methods"]:
        head = f"| {r['shape']} | {r['case']} | {r['method']} |"
        if "seconds" not in r:
            lines.append(f"{head} {r['unavailable']} | | | | |")
            continue
        extra = f"{r['extra_bytes'] / 2**20:.0f}" if "extra_bytes" in r else ""
        errors = " | ".join(f"{r[k]:.1e}" if k in r else "" for k in ("dh_error", "dw_error"))
        lines.append(f"{head} {1e3 * r['seconds']:.2f} | {r['of_gemms']:.3f} | {extra} | {errors} |")
    lines += ["", "| tokens with zero advantage | ms | of GEMMs |", "|---|---|---|"]
    lines += [f"| {r['no_signal']:.0%} | {1e3 * r['seconds']:.2f} | {r['of_gemms']:.3f} |" for r in data["no_signal"]]
    lines += ["", "| kernel | calls | ms |", "|---|---|---|"]
    lines += [f"| {r['kernel']} | {r['calls']} | {r['ms']:.2f} |" for r in data["kernels"]]
    lines += ["", "| plan | ms | extra MiB |", "|---|---|---|"]
    for r in data["plans"]:
        numbers = r["error"] + " |" if "error" in r else f"{1e3 * r['seconds']:.2f} | {r['extra_bytes'] / 2**20:.0f}"
        lines.append(f"| {r['plan']} | {numbers} |")
    lines += ["", *(f"- {r['stage']}: {r['error']}" for r in data["errors"])]
    return "\n".join(lines)


def inputs(n: int, d: int, v: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, dict]:
    g = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=g)
    hidden = randn(n, d)
    weight = randn(v, d) * 2 / d**0.5
    hidden[::97] *= 40  # a few rows whose targets are far out of fp32's range of exp
    hidden, weight = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
    targets = torch.randint(0, v, (n,), generator=g).to(device)
    now = upge.linear_logprobs(hidden, weight, targets, backend="reference").logprobs.detach()
    options = {
        "advantages": randn(n),
        "old_logprobs": now.cpu() + 0.2 * randn(n),
        "ref_logprobs": now.cpu() + 0.2 * randn(n),
        "sequence_ids": torch.randint(0, 20, (n,), generator=g),
        "mask": torch.rand(n, generator=g) < 0.9,
    }
    return hidden, weight, targets, {name: x.to(device) for name, x in options.items()}


def checks(
    device: str, dtypes: list[torch.dtype], n: int = 700, widths: tuple[int, ...] = (192, 100), v: int = 1031
) -> Iterator[tuple[str, bool]]:
    """(what was checked, whether it held). widths: a whole number of tiles' steps, and not."""
    presets = [
        upge.SFT(), upge.REINFORCE(), upge.PPO(dual_clip=3.0), upge.GRPO(), upge.DAPO(), upge.CISPO(),
        upge.CISPO(drop=True), upge.SRFT(), upge.LUFFY(), upge.DFT(), upge.SAPO(),
    ]  # fmt: skip
    mixed = {"objective_index": torch.arange(n, device=device) % len(presets)}
    bias = torch.linspace(-1, 1, v, device=device)
    calls: dict[str, tuple[list[upge.Objective], dict]] = {
        "presets in one call": (presets, mixed),
        "regularised": (presets, mixed | {"entropy_coef": 0.05, "kl_coef": 0.1}),
        "bias, soft-cap, temperature": (presets, mixed | {"bias": bias, "softcap": 20.0, "temperature": 0.7}),
        "two passes": ([upge.GSPO(0.01, 0.01)], {}),
    }
    for dtype in dtypes:
        logprob, gradient = BOUNDS[dtype]
        for d in widths:
            hidden, weight, targets, options = inputs(n, d, v, dtype, device)
            for name, (objectives, extra) in calls.items():
                results = []
                for backend in ("triton", "triton", "reference"):
                    out = upge.fused_policy_loss(
                        hidden, weight, targets, objectives, backend=backend, **options | extra
                    )
                    results.append([out.logprobs, *torch.autograd.grad(out.loss, [hidden, weight])])
                got, again, want = results
                what = f"{str(dtype).removeprefix('torch.')}, D {d}, {name}"
                # Rounding grows with the logits, and those of the rows scaled up above are 40 times larger.
                scale = torch.ones(n, device=device)
                scale[::97] = 40
                yield f"{what}: log-probabilities", bool(((got[0] - want[0]).abs() <= logprob * scale).all())
                for part, a, b in zip(("dh", "dW"), got[1:], want[1:], strict=True):
                    error = float((a.double() - b.double()).norm() / b.double().norm())
                    yield f"{what}: {part} ({error:.1e})", error <= gradient
                yield f"{what}: same bits twice", all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
            yield from invariance(hidden, weight, targets, str(dtype).removeprefix("torch.") + f", D {d}")


def invariance(hidden: Tensor, weight: Tensor, targets: Tensor, what: str) -> Iterator[tuple[str, bool]]:
    with torch.no_grad():
        logprobs = lambda rows: upge.linear_logprobs(hidden[rows], weight, targets[rows], backend="triton").logprobs
        n = len(targets)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(1)).to(hidden.device)
        whole = logprobs(torch.arange(n, device=hidden.device))
        yield f"{what}: permuted", torch.equal(logprobs(order), whole[order])
        for size in (1, 3, 65):
            parts = torch.cat([logprobs(rows) for rows in order.split(size)[:4]])
            yield f"{what}: in pieces of {size}", torch.equal(parts, whole[order[: 4 * size]])
        out = upge.fused_policy_loss(
            hidden,
            weight,
            targets,
            upge.GRPO(),
            advantages=torch.ones_like(whole),
            old_logprobs=whole,
            backend="triton",
        )
        yield f"{what}: on-policy ratio is 1", bool((out.ratio == 1).all())


def compare(report: Report, args: argparse.Namespace, shape: str, case: str, peers: list[str]) -> list[dict]:
    """One row a method, the bare GEMMs first."""
    options = loss.arguments([
        "--shape", shape, "--tokens", str(args.tokens), "--dtype", "bfloat16", "--device", args.device,
        "--repeats", str(args.repeats), "--peers", *peers,
    ])  # fmt: skip
    rows = [{"shape": shape} | row for row in loss.compare(options, case)]
    for row in rows:
        if "seconds" in row:
            row["of_gemms"] = row["seconds"] / rows[0]["seconds"]
    report.add("methods", *rows)
    return rows


def target(report: Report, what: str, measured: float, limit: float, unit: str = "", scale: float = 1.0) -> None:
    report.add(
        "targets",
        {
            "what": what,
            "wanted": f"at most {limit / scale:.2f}{unit}",
            "measured": f"{measured / scale:.2f}{unit}",
            "met": measured <= limit,
        },
    )


def targets(report: Report, args: argparse.Namespace) -> None:
    """Ours beside the bare GEMMs, and by the share of tokens without a signal."""
    for case in _problem.CASES:
        row = compare(report, args, args.shape, case, [])[1]
        target(report, f"{case}: time of three bare GEMMs", row["of_gemms"], MAX_OF_GEMMS, " x")
        target(report, f"{case}: memory", row["extra_bytes"], MAX_EXTRA_BYTES, " GiB", 2**30)
    options = ["--shape", args.shape, "--tokens", str(args.tokens), "--dtype", "bfloat16", "--device", args.device]
    shares = loss.sweep(loss.arguments([*options, "--repeats", str(args.repeats)]))
    report.add("no_signal", *shares)
    half = next(row for row in shares if row["no_signal"] == 0.5)
    target(report, "half of the tokens at A = 0: time of GEMMs", half["of_gemms"], MAX_OF_GEMMS_AT_HALF, " x")


def peers(report: Report, args: argparse.Namespace, case: str) -> None:
    rows = {row["method"]: row for row in compare(report, args, args.shape, case, list(PEERS))}
    for name in PEERS:
        if "seconds" in rows[name]:
            ratio = rows["upge"]["seconds"] / rows[name]["seconds"]
            target(report, f"{case}: time of {name}", ratio, 1.0, " x")


def kernels(report: Report, args: argparse.Namespace) -> None:
    """The time of each kernel of one forward and backward."""
    problem = _problem.make(args.shape, args.tokens, torch.bfloat16, args.device, "grpo")
    run = partial(loss.step, Problem.ours, problem)
    run()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities[: 1 + (args.device == "cuda")]) as profile:
        run()
        if args.device == "cuda":
            torch.cuda.synchronize()
    time_of = lambda e: e.device_time_total if args.device == "cuda" else e.cpu_time_total
    on_device = [e for e in profile.key_averages() if args.device == "cpu" or e.device_type.name == "CUDA"]
    slowest = sorted(on_device, key=time_of, reverse=True)[:15]
    report.add("kernels", *({"kernel": e.key[:60], "calls": e.count, "ms": time_of(e) / 1e3} for e in slowest))


def settings(report: Report, args: argparse.Namespace) -> None:
    """Ours under each of SETTINGS; the same numbers, in other times and memory."""
    problem = _problem.make(args.shape, args.tokens, torch.bfloat16, args.device, "grpo")
    run = partial(loss.step, Problem.ours, problem)
    gradients = problem.hidden.nbytes + problem.weight.nbytes
    for name, changes in SETTINGS.items():
        before = {key: getattr(plans, key) for key in changes}
        try:
            for key, value in changes.items():
                setattr(plans, key, value)
            run()
            loss.clear(problem)
            extra = _measure.extra_bytes(run, args.device, gradients)
            found = []
            for _ in range(args.repeats):
                loss.clear(problem)
                found.append(_measure.seconds(run, args.device))
            report.add("plans", {"plan": name, "seconds": statistics.median(found), "extra_bytes": extra})
        except Exception as error:  # a tile that the GPU cannot hold
            report.add("plans", {"plan": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:100]})
        finally:
            for key, value in before.items():
                setattr(plans, key, value)
            loss.clear(problem)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("bench/results/gpu"), metavar="DIR")
    parser.add_argument("--minutes", type=float, default=9.5, help="no stage starts that would end later")
    parser.add_argument("--shape", choices=_problem.SHAPES, default="qwen2.5-7b")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rehearse", action="store_true", help="all stages in tiny sizes on a CPU, as a test")
    args = parser.parse_args(argv)
    if not args.rehearse and not torch.cuda.is_available():
        print("bench gpu: PyTorch sees no GPU here", file=sys.stderr)
        return 2
    args.device = "cpu" if args.rehearse else "cuda"
    sizes: dict[str, Any] = {}
    second = "llama-3.1-8b"
    if args.rehearse:
        args.shape = second = "rehearsal"
        args.tokens, args.repeats, sizes = 512, 1, {"n": 70, "widths": (20,), "v": 257}
    report = Report(args.output, args.minutes)
    report.data["settings"] = {
        "GPU": loss.processor(args.device), "torch": torch.__version__, "shape": args.shape, "tokens": args.tokens,
        "dtype": "bfloat16", "repeats": args.repeats,
    }  # fmt: skip

    def check(dtype: torch.dtype) -> None:
        for what, held in checks(args.device, [dtype], **sizes):
            report.add("checks", {"what": what, "held": held})
            if not held:
                print(f"FAIL {what}", flush=True)

    report.stage("checks, bfloat16", 60, lambda: check(torch.bfloat16))
    report.stage("targets", 60, lambda: targets(report, args))
    for case in _problem.CASES:
        report.stage(f"peers, {case}", 60, partial(peers, report, args, case))
    report.stage("kernels", 15, lambda: kernels(report, args))
    report.stage("settings", 60, lambda: settings(report, args))
    report.stage("checks, float32", 45, lambda: check(torch.float32))
    report.stage("checks, float16", 45, lambda: check(torch.float16))
    report.stage(second, 30, lambda: compare(report, args, second, "hpt", []))
    report.write()
    print((args.output / "gpu.md").read_text())
    return int(bool(report.data["errors"]) or not all(r["held"] for r in report.data["checks"]))
