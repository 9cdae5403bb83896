"""The report of `python -m bench adopt`: JSON and a Markdown table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Report = dict[str, Any]

NOTES = """\
- A step is the trainer's own: forward, backward, gradient norm and AdamW. In GRPO it begins at the rewards and has
  advantages, too. Rollouts are made up, on-policy and without a reference model; all have an advantage.
- seconds: the best step of {repeats}, and by how much the slowest took longer. Trainers take turns.{clock}
- extra MiB: the peak of a step beyond what was there before it (weights and optimizer states). Gradients are part of
  it. Each trainer has its own process.
- gradients' difference: the norm of the difference of all gradients from those of the first trainer, relative to the
  norm of the latter, for the same weights and tokens."""
BF16_NOTE = """
  In bfloat16 both round, which alone sets them apart by some 1e-3."""
CLOCK = """
  A second is one that the cores worked for the process."""
CPU_NOTES = """
- What this does not show: a GPU, where products, memory and launches cost otherwise; bf16; a model of usual size. The
  head has {head_share:.0%} of the weights in matrix products here, and 15% in Qwen2.5-1.5B: the smaller its share, the
  less of a step changes.
- TRL's own log-probabilities are slow on a CPU. From that nothing follows for a GPU."""


def table(report: Report) -> str:
    """The report as Markdown."""
    settings = report["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    threads = f", threads: {settings['threads']}" if settings["threads"] else ""
    lines = [
        f"`{settings['command']}`",
        "",
        f"{settings['shape']} (D {settings['width']}, V {settings['vocabulary']}, {settings['layers']} layers), "
        f"{settings['rows']} rows of {settings['length']} tokens in {settings['micro_batches']} micro-batches, "
        f"{settings['dtype']}, {settings['processor']}"
        f"{threads}; {versions} of commit {settings['commit']}",
        "",
        "| case | trainer | seconds | of first | extra MiB | gradients' difference |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_line(row) for row in report["rows"]]
    on_a_cpu = settings["device"] == "cpu"
    notes = NOTES + (BF16_NOTE if settings["dtype"] == "bfloat16" else "") + (CPU_NOTES if on_a_cpu else "")
    clock = CLOCK if on_a_cpu else ""
    lines += ["", notes.format(repeats=settings["repeats"], clock=clock, head_share=settings["head_share"])]
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
