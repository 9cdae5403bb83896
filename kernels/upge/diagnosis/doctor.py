"""What `python -m upge doctor` looks at. Each check is a process of its own: a crash or a hang is a finding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..heads import HEADS
from . import machine
from .checks import CALLS, check_bits, check_values
from .finding import Finding, fault, note
from .isolated import run_isolated, side_by_side
from .machine import Device
from .real_shape import check_head, time_head

LIMIT = 120.0  # seconds of a check. A kernel that was never used before compiles for some seconds.
HEAD = "qwen2.5-7b"
# Bytes that the checks with a real model's head take at most, float64 numbers included.
HEAD_BYTES = 8 << 30


@dataclass(frozen=True)
class Section:
    """A check's findings."""

    title: str
    findings: list[Finding]
    seconds: float


@dataclass(frozen=True)
class Check:
    """A function that yields findings, its arguments, and the seconds that it may take."""

    title: str
    function: Callable[..., Iterator[Finding]]
    arguments: dict[str, Any]
    limit: float = LIMIT


def examine() -> Iterator[Section]:
    """Look at the machine, then check the backend that calls take on it, and on a GPU measure it."""
    found = run_isolated(machine.devices, LIMIT)
    devices: list[Device] = found.results
    findings = machine.software(on_gpu=bool(devices))
    findings += machine.describe(devices[0]) if devices else [machine.why_no_gpu()]
    if found.fault:
        findings.append(fault("looking for GPUs", _what_happened(found.fault, found.output)))
    yield Section("machine", findings, found.seconds)
    yield from run_checks(backend_checks(devices))
    if devices and _has_triton():
        yield from _with_head(devices[0])


def backend_checks(devices: Sequence[Device]) -> list[Check]:
    """Small calls of the backend that `backend="auto"` takes."""
    if not devices:
        return _small_checks("cpu", "torch", "float32", [CALLS]) + _small_checks("cpu", "torch", "bfloat16", [CALLS])
    backend = "triton" if _has_triton() else "torch"
    # Each call compiles kernels of its own, so it is a process of its own.
    found = _small_checks("cuda", backend, "bfloat16", [(call,) for call in CALLS])
    for dtype in ("float16", "float32"):
        found += _small_checks("cuda", backend, dtype, [CALLS[:1]])
    return found


def _small_checks(device: str, backend: str, dtype: str, calls: Sequence[Sequence[str]]) -> list[Check]:
    """The calls of each item in a process of their own, and a process for bits."""
    common = {"device": device, "backend": backend, "dtype": dtype, "n": 300 if device == "cpu" else 700}
    found = [Check(f"{backend}, {dtype}, bits", check_bits, common)]
    for names in calls:
        title = f"{backend}, {dtype}, {names[0] if len(names) == 1 else 'values'}"
        found.append(Check(title, check_values, {**common, "calls": list(names)}))
    return found


def run_checks(checks: Sequence[Check]) -> Iterator[Section]:
    """Run the checks, as many at once as there are CPUs, up to 8; in their order."""
    yield from side_by_side([partial(run_check, check) for check in checks], min(8, os.cpu_count() or 1))


def run_check(check: Check) -> Section:
    outcome = run_isolated(check.function, check.limit, {"OMP_NUM_THREADS": "1"}, **check.arguments)
    findings: list[Finding] = outcome.results
    if outcome.fault:
        findings.append(fault(check.title, _what_happened(outcome.fault, outcome.output)))
    return Section(check.title, findings, outcome.seconds)


def verdict(sections: Sequence[Section]) -> str:
    """One line."""
    wrong = [finding for section in sections for finding in section.findings if finding["held"] is False]
    right = sum(finding["held"] is True for section in sections for finding in section.findings)
    if wrong:
        return f"Not all right: {len(wrong)} of {right + len(wrong)} checks failed, the first: {wrong[0]['what']}."
    if not any(section.title.startswith("triton") for section in sections):
        return f"All right: {right} checks of the torch backend. No kernel for GPUs was run."
    return f"All right: {right} checks."


def is_right(sections: Sequence[Section]) -> bool:
    return all(finding["held"] is not False for section in sections for finding in section.findings)


def _with_head(device: Device) -> Iterator[Section]:
    """Checks that take much memory, one after the other."""
    vocabulary, width = HEADS[HEAD]
    arguments = {"device": "cuda", "v": vocabulary, "width": width}
    if device["free"] < HEAD_BYTES:
        why = f"not looked at: it takes up to {HEAD_BYTES >> 30} GiB, and {device['free'] / 2**30:.1f} are free"
        yield Section(f"head of {HEAD}", [note(f"head of {HEAD}", why)], 0.0)
        return
    yield run_check(Check(f"head of {HEAD}", check_head, arguments))
    yield run_check(Check(f"head of {HEAD}, time", time_head, arguments))


def _has_triton() -> bool:
    return machine.version("triton") is not None


def _what_happened(fault: str, output: str) -> str:
    return f"{fault[:500]}\n{output}" if output else fault[:500]
