"""The time of a step as `hpt plan` predicts it and as measured, for small models on a CPU.

Each case runs in its own process on one thread: it plans a step, which measures the CPU's rates, and then times steps
of hpt's trainer with random weights and questions. Cases are interleaved: all run once, then all again. Times are CPU
seconds of the process, so other work on the machine is not counted. Of a case's runs the best planned and the best
measured time are compared, and the spread of both is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from ..commit import last_commit
from ..losses.measure import processor
from ..output import output_path
from ..training.step_cases import CASES, time_case

PHASES = ("rollout", "train", "step")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench step_time", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case runs (default 3)")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=output_path, help="write OUT.json and OUT.md")
    args = parser.parse_args(argv)
    if args.case:
        print(json.dumps(time_case(args.case)))
        return 0
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.cases}
    for _ in range(args.rounds):
        for name in args.cases:
            command = [sys.executable, "-m", "bench", "step_time", "--case", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(line(summarised(name, runs[name])), flush=True)
    rows = [summarised(name, found) for name, found in runs.items()]
    if args.out:
        conditions = {
            "processor": processor("cpu"),
            "threads": 1,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": last_commit("hpt", "bench"),
            "rounds": args.rounds,
        }
        args.out.with_suffix(".json").write_text(json.dumps({"conditions": conditions, "cases": rows}, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(page(rows, conditions))
    return 0


def summarised(name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each phase: best and worst of the planned and of the measured seconds, and the ratio of the best."""
    row: dict[str, Any] = {"case": name}
    for phase in PHASES:
        planned = [run["planned"][phase] for run in runs]
        measured = [step[phase] for run in runs for step in run["measured"]]
        if min(measured) == 0:
            continue
        row[phase] = {
            "planned": [round(min(planned), 4), round(max(planned), 4)],
            "measured": [round(min(measured), 4), round(max(measured), 4)],
            "ratio": round(min(planned) / min(measured), 3),
        }
    return row


def line(row: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    cells = [row["case"]]
    for phase in PHASES:
        if phase in row:
            found = row[phase]
            cells += [
                f"{found['measured'][0]:.2f} to {found['measured'][1]:.2f}",
                f"{found['planned'][0]:.2f} ({found['ratio']:.2f})",
            ]
        else:
            cells += ["", ""]
    return f"| {' | '.join(cells)} |"


def page(rows: Sequence[dict[str, Any]], conditions: dict[str, Any]) -> str:
    head = ["case", *(cell for phase in PHASES for cell in (f"{phase}, seconds", "planned (ratio)"))]
    ratios = [row[phase]["ratio"] for row in rows for phase in PHASES if phase in row]
    said = ", ".join(f"{name} {value}" for name, value in conditions.items())
    command = f"python -m bench step_time --rounds {conditions['rounds']} --out bench/results/step-time-cpu"
    return "\n".join(
        [
            "# The time of a step, as planned and as measured",
            "",
            f"`{command}` wrote this.",
            "Seconds of CPU time: best to worst measured, best planned, and the ratio of the best ones. A round is two",
            "steps, and one plan.",
            "",
            f"Conditions: {said}.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *map(line, rows),
            "",
            f"Planned over measured: {min(ratios):.2f} to {max(ratios):.2f}.",
            "",
        ]
    )
