"""The report of `python -m bench gpu`, written to disk after every change."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..losses.report import memory_and_errors

PARTS = ("checks", "targets", "methods", "no_signal", "kernels", "plans", "errors")


class Report:
    """What was found so far, and how much time is left."""

    def __init__(self, folder: Path, minutes: float):
        self.folder = folder
        self.end = time.monotonic() + 60 * minutes
        self.data: dict[str, Any] = {"settings": {}, **{part: [] for part in PARTS}}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, part: str, *rows: Mapping[str, Any]) -> None:
        self.data[part] += rows
        self.write()

    def add_target(self, what: str, measured: float, limit: float, unit: str = "", scale: float = 1.0) -> None:
        """A number that should be at most `limit`. Both are shown divided by `scale`, in `unit`."""
        row = {
            "what": what,
            "wanted": f"at most {limit / scale:.2f}{unit}",
            "measured": f"{measured / scale:.2f}{unit}",
            "met": measured <= limit,
        }
        self.add("targets", row)

    def write(self) -> None:
        (self.folder / "gpu.json").write_text(json.dumps(self.data, indent=1) + "\n")
        (self.folder / "gpu.md").write_text(markdown(self.data) + "\n")

    def stage(self, name: str, seconds: float, run: Callable[[], object]) -> None:
        """Run a stage. A stage that fails is recorded, and so is one for which too little time is left."""
        left = self.end - time.monotonic()
        print(f"-- {name} ({left:.0f} s left)", flush=True)
        try:
            if left < seconds:
                raise TimeoutError(f"needs about {seconds:.0f} s, {left:.0f} s are left")
            run()
        except Exception as error:
            traceback.print_exc()
            self.add("errors", {"stage": name, "error": f"{type(error).__name__}: {error}"[:500]})


def markdown(data: dict[str, Any]) -> str:
    lines = [", ".join(f"{key} {value}" for key, value in data["settings"].items()), ""]
    lines += ["| target | wanted | measured | |", "|---|---|---|---|"]
    for row in data["targets"]:
        met = "met" if row["met"] else "**missed**"
        lines.append(f"| {row['what']} | {row['wanted']} | {row['measured']} | {met} |")
    failed = [row for row in data["checks"] if not row["held"]]
    lines += [
        "",
        f"{len(data['checks'])} checks, {len(failed)} failed",
        *(f"- {row['what']}: {row['found']}" for row in failed),
        "",
    ]
    lines += ["| shape | case | method | ms | of GEMMs | extra MiB | error of dh | error of dW |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [_method_line(row) for row in data["methods"]]
    lines += ["", "| tokens with zero advantage | ms | of GEMMs |", "|---|---|---|"]
    for row in data["no_signal"]:
        lines.append(f"| {row['no_signal']:.0%} | {1e3 * row['seconds']:.2f} | {row['of_gemms']:.3f} |")
    lines += ["", "| kernel | calls | ms |", "|---|---|---|"]
    lines += [f"| {row['kernel']} | {row['calls']} | {row['ms']:.2f} |" for row in data["kernels"]]
    lines += ["", "| tiling | ms | extra MiB |", "|---|---|---|"]
    lines += [_tiling_line(row) for row in data["plans"]]
    lines += ["", *(f"- {row['stage']}: {row['error']}" for row in data["errors"])]
    return "\n".join(lines)


def _method_line(row: dict[str, Any]) -> str:
    head = f"| {row['shape']} | {row['case']} | {row['method']} |"
    if "unavailable" in row:
        return f"{head} {row['unavailable']} | | | | |"
    return f"{head} {1e3 * row['seconds']:.2f} | {row['of_gemms']:.3f} | {memory_and_errors(row)} |"


def _tiling_line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['plan']} | {row['error']} | |"
    return f"| {row['plan']} | {1e3 * row['seconds']:.2f} | {row['extra_bytes'] / 2**20:.0f} |"
