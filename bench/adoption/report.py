"""The report of `python -m bench adopt`: JSON and a Markdown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Report = dict[str, Any]

READING = """\
Each step is the trainer's own, from its `on_step_begin` to its `on_step_end`: forward, backward and AdamW; in GRPO also
rewards and advantages, but not the generation: the rollouts are made up. seconds: the best of {repeats} steps, variants
taking turns, and by how much the slowest took longer{clock}. extra MiB: the peak of a step beyond what was there before
it (weights and optimizer states), each variant in its own process; the gradients of all weights are part of it.
gradients' difference: the norm of the difference of all gradients from the first variant's, relative to their norm, for
the same weights and tokens."""
ON_A_CPU = """\
What these figures do not show: a GPU, whose matrix products, memory and launches cost otherwise; bf16; and a real
model, whose body takes most of a step: here the head has {head_share:.0%} of the weights in matrix products (in
Qwen2.5-1.5B it has 15%), so less of a real step changes. On a CPU, TRL's own log-probabilities are slow, and nothing
follows from that for a GPU."""


def table(report: Report) -> str:
    """The report as Markdown."""
    settings = report["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    threads = f", {settings['threads']} threads" if settings["threads"] else ""
    lines = [
        f"{settings['shape']} (D {settings['width']}, V {settings['vocabulary']}, {settings['layers']} layers), "
        f"{settings['rows']} rows of {settings['length']} tokens, {settings['dtype']}, {settings['processor']}"
        f"{threads}; {versions}; commit {settings['commit']}",
        "",
        "| case | trainer | seconds | of first | extra MiB | gradients' difference |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in report["rows"]]
    on_a_cpu = settings["device"] == "cpu"
    clock = ", in seconds that the cores worked for the process" if on_a_cpu else ""
    lines += ["", READING.format(repeats=settings["repeats"], clock=clock)]
    if on_a_cpu:
        lines += ["", ON_A_CPU.format(head_share=settings["head_share"])]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    head = f"| {row['case']} | {row['variant']} |"
    if "failed" in row:
        return f"{head} {row['failed']} | | | |"
    slowest = max(row["seconds_all"]) / row["seconds"] - 1
    of_first = f"{row['of_first']:.2f}" if "of_first" in row else ""
    difference = f"{row['gradient_difference']:.1e}" if "gradient_difference" in row else ""
    extra = f"{row['extra_bytes'] / 2**20:.0f}"
    return f"{head} {row['seconds']:.3f} (+{slowest:.0%}) | {of_first} | {extra} | {difference} |"


def write(report: Report, out: Path) -> None:
    """OUT.json and OUT.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(report) + "\n")
