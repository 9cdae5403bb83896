"""What the stages of `python -m bench gpu` measure. Each function runs in a process of its own and yields rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from upge.backends import plan as plans
from upge.backends.plan import GEMMS, Gemm
from upge.commands.tune import describe
from upge.diagnosis.checks import DTYPES, check_bits, check_values
from upge.diagnosis.finding import Finding
from upge.diagnosis.real_shape import check_head
from upge.tuning.measure import time_candidates

from ..losses.comparison import Settings, compare, sweep_no_signal
from ..losses.measure import forward_backward, seconds
from ..losses.problem import SHAPES, Problem

Row = dict[str, Any]
CHUNK = 2048  # rows of the bare GEMMs


def check_chunk(device: str, dtype: str, shape: str, tokens: int) -> Iterator[Finding]:
    """A model's head with so many tokens."""
    width, vocabulary = SHAPES[shape]
    yield from check_head(device, vocabulary, width, tokens, dtype)


def check_real_shape(device: str, dtype: str, shape: str, tokens: int) -> Iterator[Finding]:
    """A model's head with all tokens, with one row less than a chunk has, and with one more."""
    width, vocabulary = SHAPES[shape]
    capability = torch.cuda.get_device_capability() if device == "cuda" else (0, 0)
    plan = plans.plan_for(DTYPES[dtype], DTYPES[dtype], capability, width)
    rows = plans.chunk_rows(plan, vocabulary, width, sums_weight=True)
    for n in (tokens, rows - 1, rows + 1):
        yield from check_chunk(device, dtype, shape, n)


def check_dtype(device: str, dtype: str, widths: list[int], n: int, v: int) -> Iterator[Finding]:
    """Small calls in one dtype."""
    for width in widths:
        yield from check_values(device, dtype, n=n, width=width, v=v)
        yield from check_bits(device, dtype, n=n, width=width, v=v)


def measure_gemms(device: str, shape: str, repeats: int) -> Iterator[Row]:
    """Each of the three GEMMs of a chunk by the vendor's BLAS, in bfloat16."""
    width, vocabulary = SHAPES[shape]
    randn = partial(torch.randn, device=device, dtype=torch.bfloat16)
    hidden, weight, logits = randn(CHUNK, width), randn(vocabulary, width), randn(CHUNK, vocabulary)
    operands = {"h W^T": (hidden, weight.t()), "G W": (logits, weight), "G^T h": (logits.t(), hidden)}
    for name, (a, b) in operands.items():
        times = [seconds(partial(torch.mm, a, b), device) for _ in range(repeats + 1)][1:]  # the first one warms up
        taken = statistics.median(times)
        rate = 2 * CHUNK * width * vocabulary / taken / 1e12
        yield {"gemm": name, "rows": CHUNK, "ms": 1e3 * taken, "tflops": rate}


def measure_kernels(settings: Row) -> Iterator[Row]:
    """The time of each kernel of one forward and backward, and the rate of the GEMMs among them."""
    s = Settings(**settings)
    on_gpu = s.device == "cuda"
    run = partial(forward_backward, Problem.fused, s.problem("grpo"))
    run()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        if on_gpu:
            torch.cuda.synchronize()
    found = []
    for event in profile.key_averages():
        if not on_gpu or event.device_type.name == "CUDA":
            microseconds = event.device_time_total if on_gpu else event.cpu_time_total
            found.append({"kernel": event.key[:60], "calls": event.count, "ms": microseconds / 1e3})
    width, vocabulary = SHAPES[s.shape]
    for row in sorted(found, key=lambda row: row["ms"], reverse=True)[:25]:
        if row["kernel"].startswith(GEMMS):  # takes 2 NVD
            row["tflops"] = 2 * s.tokens * width * vocabulary / row["ms"] / 1e9
        yield row


def measure_methods(settings: Row, cases: list[str], peers: list[str]) -> Iterator[Row]:
    """Time, memory and errors of the bare GEMMs, of upge and of the peers that are installed."""
    s = Settings(**settings)
    for case in cases:
        rows = {row["method"]: row for row in compare(s, case, peers)}
        for row in rows.values():
            if "seconds" in row:
                row["upge_of_it"] = rows["upge"]["seconds"] / row["seconds"]
            yield {"shape": s.shape, **row}


def measure_shares(settings: Row) -> Iterator[Row]:
    """The time by the share of tokens without a signal."""
    yield from sweep_no_signal(Settings(**settings))


def measure_candidates(gemm: str, device: str, shape: str, repeats: int, rows: int | None) -> Iterator[Row]:
    """Each kernel of the plan for one of the GEMMs, and the bare product, as `python -m upge tune` times them."""
    width, vocabulary = SHAPES[shape]
    for row in time_candidates(gemm, vocabulary, width, "bfloat16", device, repeats, rows):
        label = "the bare product" if row["gemm"] is None else describe(Gemm(**row["gemm"]))
        yield {"of": gemm, "kernel": label, **row}
