"""The report of `python -m bench loss`: JSON, a Markdown table and a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Report = dict[str, Any]


def table(report: Report) -> str:
    """The report as Markdown."""
    settings = report["settings"]
    where = settings["processor"]
    if settings["threads"]:
        where = f"{where}, threads: {settings['threads']}"
    lines = [
        f"{settings['shape']} (D {settings['width']}, V {settings['vocabulary']}), {settings['tokens']} tokens, "
        f"{settings['dtype']}, {where}, torch {settings['torch']}, "
        f"`{settings['command']}`, commit {settings['commit']}",
        "",
        f"Milliseconds of forward and backward: best, median and slowest of {settings['repeats']} rounds, in each of "
        f"which every method runs once, in random order. The clock is {settings['clock']}. `of GEMMs` divides the best "
        f"by that of the three bare GEMMs. Errors are of {settings['error_tokens']} tokens.",
        "",
        "| case | method | best | median | slowest | of GEMMs | extra MiB | error of dh | error of dW |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["methods"]:
        if "unavailable" in row:
            lines.append(f"| {row['case']} | {row['method']} | {row['unavailable']} | | | | | | |")
            continue
        lines.append(f"| {row['case']} | {row['method']} | {_times(row)} | {memory_and_errors(row)} |")
    lines += ["", "| tokens without a signal | best | median | slowest | of GEMMs |", "|---|---|---|---|---|"]
    lines += [f"| {row['no_signal']:.0%} | {_times(row)} |" for row in report["no_signal"]]
    return "\n".join(lines)


def _times(row: dict[str, Any]) -> str:
    times = " | ".join(f"{1e3 * row[key]:.2f}" for key in ("seconds", "seconds_median", "seconds_slowest"))
    return f"{times} | {row['of_gemms']:.2f}"


def memory_and_errors(row: dict[str, Any]) -> str:
    """The last three cells of a method's row."""
    extra = f"{row['extra_bytes'] / 2**20:.0f}" if "extra_bytes" in row else ""
    errors = " | ".join(f"{row[key]:.1e}" if key in row else "" for key in ("dh_error", "dw_error"))
    return f"{extra} | {errors}"


def write(report: Report, out: Path) -> None:
    """OUT.json, OUT.md and OUT.png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(report) + "\n")
    draw(report, out.with_suffix(".png"))


def draw(report: Report, path: Path) -> None:
    """Time and memory by method, and time by the share of tokens without a signal."""
    settings = report["settings"]
    figure = Figure(figsize=(12, 4), layout="constrained")
    time_axes, memory_axes, share_axes = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1])
    measured = [row for row in report["methods"] if "seconds" in row]
    methods = list(dict.fromkeys(row["method"] for row in measured))
    cases = list(dict.fromkeys(row["case"] for row in measured))
    for axes, key, unit in ((time_axes, "seconds", 1), (memory_axes, "extra_bytes", 2**20)):
        for i, case in enumerate(cases):
            found = [row for row in measured if row["case"] == case and key in row]
            places = [methods.index(row["method"]) + (i - (len(cases) - 1) / 2) * 0.25 for row in found]
            axes.barh(places, [max(row[key], 0) / unit for row in found], height=0.22, label=case)
        axes.set_yticks(range(len(methods)), methods if axes is time_axes else [""] * len(methods))
        axes.set_ylim(len(methods) - 0.5, -0.5)
    time_axes.set_xlabel("seconds, forward and backward, best round")
    memory_axes.set_xlabel("extra memory, MiB")
    memory_axes.legend(frameon=False)
    share_axes.plot(
        [100 * row["no_signal"] for row in report["no_signal"]], [row["of_gemms"] for row in report["no_signal"]], "o-"
    )
    share_axes.set(xlabel="tokens with zero advantage, %", ylabel="time of upge / three bare GEMMs", ylim=(0, None))
    for axes in (time_axes, memory_axes, share_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{settings['shape']}, {settings['tokens']} tokens, {settings['dtype']}, {settings['processor']}")
    figure.savefig(path, dpi=120)
