"""The measurements of `python -m bench gpu`: targets, peers, kernels, tilings. Each adds its rows to the report."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from upge.backends import tiling as tilings

from ..losses.comparison import Settings, compare, sweep_no_signal
from ..losses.measure import clear_gradients, extra_bytes, forward_backward, seconds
from ..losses.peers import PEERS
from ..losses.problem import CASES, Problem
from .report import Report

MAX_OF_GEMMS, MAX_OF_GEMMS_AT_HALF, MAX_EXTRA_BYTES = 1.15, 0.6, 1.5 * 2**30

# Changes to the tiling of bf16, each measured by itself.
TILINGS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "chunks of 400 MiB": {"CHUNK_BYTES": 400 << 20},
    "chunks of 1600 MiB": {"CHUNK_BYTES": 1600 << 20},
    "dh in 1 part": {"HIDDEN_PARTS": 1},
    "dh in 2 parts": {"HIDDEN_PARTS": 2},
    "dh in 8 parts": {"HIDDEN_PARTS": 8},
    "128 x 256, 4 stages": {"WIDE": tilings.Tile(128, 256, 64, 8, 4, SPLIT=True)},
    "128 x 128": {"WIDE": tilings.Tile(128, 128, 64, 8, 3)},
    "128 x 128, 4 warps, 4 stages": {"WIDE": tilings.Tile(128, 128, 64, 4, 4)},
    "256 x 128": {"WIDE": tilings.Tile(256, 128, 64, 8, 3)},
}


def measure_methods(report: Report, settings: Settings, case: str, peers: list[str]) -> dict[str, dict[str, Any]]:
    """Time, memory and errors of upge and of `peers`. The rows by method."""
    rows = {row["method"]: {"shape": settings.shape} | row for row in compare(settings, case, peers)}
    for row in rows.values():
        if "seconds" in row:
            row["of_gemms"] = row["seconds"] / rows["gemms"]["seconds"]
    report.add("methods", *rows.values())
    return rows


def measure_targets(report: Report, settings: Settings) -> None:
    """upge compared with the bare GEMMs, and by the share of tokens without a signal."""
    for case in CASES:
        row = measure_methods(report, settings, case, [])["upge"]
        report.add_target(f"{case}: time of three bare GEMMs", row["of_gemms"], MAX_OF_GEMMS, " x")
        report.add_target(f"{case}: memory", row["extra_bytes"], MAX_EXTRA_BYTES, " GiB", 2**30)
    shares = sweep_no_signal(settings)
    report.add("no_signal", *shares)
    half = next(row for row in shares if row["no_signal"] == 0.5)
    report.add_target("half of the tokens at A = 0: time of GEMMs", half["of_gemms"], MAX_OF_GEMMS_AT_HALF, " x")


def measure_peers(report: Report, settings: Settings, case: str) -> None:
    """upge compared with every peer that is installed."""
    rows = measure_methods(report, settings, case, list(PEERS))
    for name in PEERS:
        if "seconds" in rows[name]:
            report.add_target(f"{case}: time of {name}", rows["upge"]["seconds"] / rows[name]["seconds"], 1.0, " x")


def measure_kernels(report: Report, settings: Settings) -> None:
    """The time of each kernel of one forward and backward."""
    on_gpu = settings.device == "cuda"
    run = partial(forward_backward, Problem.fused, settings.problem("grpo"))
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
    found.sort(key=lambda row: row["ms"], reverse=True)
    report.add("kernels", *found[:15])


def measure_tilings(report: Report, settings: Settings) -> None:
    """Time and memory of upge under each of TILINGS. The computed numbers stay the same."""
    problem = settings.problem("grpo")
    run = partial(forward_backward, Problem.fused, problem)
    gradients = problem.hidden.nbytes + problem.weight.nbytes
    for name, changes in TILINGS.items():
        try:
            with _changed(changes):
                run()
                clear_gradients(problem)
                extra = extra_bytes(run, settings.device, gradients)
                times = []
                for _ in range(settings.repeats):
                    clear_gradients(problem)
                    times.append(seconds(run, settings.device))
            report.add("plans", {"plan": name, "seconds": statistics.median(times), "extra_bytes": extra})
        except Exception as error:  # a tile that the GPU cannot hold
            report.add("plans", {"plan": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:100]})
        clear_gradients(problem)


@contextmanager
def _changed(changes: dict[str, Any]) -> Iterator[None]:
    """With other constants in `upge.backends.tiling`."""
    before = {name: getattr(tilings, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(tilings, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(tilings, name, value)


def measure_second_head(report: Report, settings: Settings, shape: str) -> None:
    """upge on another model's head."""
    measure_methods(report, replace(settings, shape=shape), "hpt", [])
