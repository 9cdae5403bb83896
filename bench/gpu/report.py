"""The report of `python -m bench gpu`, written to disk after every stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..losses.report import memory_and_errors
from .targets import targets

PARTS = ("stages", "heads", "checks", "gemms", "kernels", "methods", "no_signal", "candidates", "compiled")


class Report:
    """What was found so far: settings, and rows of each part. rehearsal: it ran on a CPU and measures nothing."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], rehearsal: bool = False):
        self.folder = folder
        self.data: dict[str, Any] = {"rehearsal": rehearsal, "settings": dict(settings)} | {p: [] for p in PARTS}
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def add(self, part: str, *rows: Mapping[str, Any]) -> None:
        self.data[part] += rows
        self._write()

    @property
    def faults(self) -> dict[str, str]:
        """By stage: what kept it from ending, or from starting."""
        return {row["stage"]: row["fault"] for row in self.data["stages"] if row["fault"]}

    @property
    def wrong(self) -> list[str]:
        """The checks that did not hold."""
        return [f"{row['what']}: {row['found']}" for row in self.checks if row["held"] is False]

    @property
    def checks(self) -> list[dict[str, Any]]:
        return [row for row in self.data["heads"] + self.data["checks"] if row["held"] is not None]

    def text(self) -> str:
        return "\n".join(_lines(self))

    def _write(self) -> None:
        _replace(self.folder / "gpu.json", json.dumps(self.data, indent=1) + "\n")
        _replace(self.folder / "gpu.md", self.text() + "\n")


def _replace(file: Path, text: str) -> None:
    """The file has its old or its new text, also if this process is killed."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _lines(report: Report) -> Iterator[str]:
    data = report.data
    if data["rehearsal"]:
        yield from ("A rehearsal on a CPU, no measurement: times and memory here say nothing about a GPU.", "")
    yield ", ".join(f"{key} {value}" for key, value in data["settings"].items())
    yield from ("", "| target | wanted | measured | |", "|---|---|---|---|")
    for row in targets(data):
        verdict = "met" if row.met else "**missed**"
        found = "not measured |" if data["rehearsal"] else f"{row.measured} | {verdict}"
        yield f"| {row.what} | {row.wanted} | {found} |"
    yield from ("", f"{len(report.checks)} checks, {len(report.wrong)} failed", *(f"- {x}" for x in report.wrong))
    yield from ("", "| at a real shape (dtype, N x D x V) | found |", "|---|---|")
    yield from (f"| {row['what']} | {row['found']} |" for row in data["heads"])
    yield from ("", "| bare GEMM | rows | ms | TFLOP/s |", "|---|---|---|---|")
    yield from (f"| {r['gemm']} | {r['rows']} | {r['ms']:.3f} | {r['tflops']:.0f} |" for r in data["gemms"])
    yield from ("", "| kernel | calls | ms | TFLOP/s |", "|---|---|---|---|")
    for row in data["kernels"]:
        rate = f"{row['tflops']:.0f}" if "tflops" in row else ""
        yield f"| {row['kernel']} | {row['calls']} | {row['ms']:.2f} | {rate} |"
    yield from ("", "| shape | case | method | ms | of GEMMs | extra MiB | error of dh | error of dW |")
    yield "|---|---|---|---|---|---|---|---|"
    yield from map(_method_line, data["methods"])
    yield from ("", "| tokens with zero advantage | ms | of GEMMs |", "|---|---|---|")
    for row in data["no_signal"]:
        yield f"| {row['no_signal']:.0%} | {1e3 * row['seconds']:.2f} | {row['of_gemms']:.3f} |"
    yield from ("", "| GEMM | kernel | ms | TFLOP/s |", "|---|---|---|---|")
    yield from map(_candidate_line, data["candidates"])
    yield from ("", "| stage | seconds | MHz | W | |", "|---|---|---|---|---|")
    yield from map(_stage_line, data["stages"])
    if data["compiled"]:
        seconds = sum(row["seconds"] for row in data["compiled"])
        yield from ("", f"{len(data['compiled'])} kernels were compiled ahead, in {seconds:.0f} s of all processes")


def _method_line(row: dict[str, Any]) -> str:
    head = f"| {row['shape']} | {row['case']} | {row['method']} |"
    if "unavailable" in row:
        return f"{head} {row['unavailable']} | | | | |"
    return f"{head} {1e3 * row['seconds']:.2f} | {row['of_gemms']:.3f} | {memory_and_errors(row)} |"


def _candidate_line(row: dict[str, Any]) -> str:
    found = row["fault"] if "fault" in row else f"{1e3 * row['seconds']:.3f} | {row['tflops']:.0f}"
    return f"| {row['of']} | {row['kernel']} | {found} |"


def _stage_line(row: dict[str, Any]) -> str:
    seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
    clock = "{:.0f} to {:.0f}".format(*row["clock_mhz"]) if "clock_mhz" in row else ""
    power = f"{row['power_w']:.0f}" if "power_w" in row else ""
    return f"| {row['stage']} | {seconds} | {clock} | {power} | {' '.join(row['fault'].split())} |"
