"""What `rollout.probe` saves and what it costs: HPT on the sums of `hpt train sums`, with several seeds.

8 rollouts of every question, 4 of them first (`rollout.probe=4`), and 4 only, all from the same start models and with
the same questions in the same order. Reports held-out accuracy, and the rollouts and tokens that it took.

Finished runs are kept and unfinished ones continued, so the command can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hpt.records.files import read_metrics

from .. import runs
from ..commit import last_commit
from ..output import output_path

LEARNING_RATE = "optimizer.lr=9e-4"  # HPT's best on this recipe, by `python -m bench reproduce`
VARIANTS = {
    "n = 8": ["rollout.n=8"],
    "n = 8, probe 4": ["rollout.n=8", "rollout.probe=4"],
    "n = 4": ["rollout.n=4"],
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--n", type=int, default=8, help="responses per held-out question (default 8)")
    parser.add_argument("--runs", type=Path, default=Path("runs/probe"), help="folder of the runs")
    parser.add_argument("--out", type=output_path, help="write OUT.json and OUT.md")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, for every run")
    options = parser.parse_args(argv)
    with runs.hold(options.runs):
        found = [_run(options, seed, variant) for seed in options.seeds for variant in VARIANTS]
    report = {
        "settings": {
            "command": shlex.join(["python", "-m", "bench", "probe", *argv]),
            "recipe": "sums",
            "machine": runs.machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "hpt", "upge")},
            "commit": last_commit("kernels", "hpt"),
        },
        "runs": found,
    }
    print(table(found))
    if options.out:
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(found))
    return 0


def _run(options: argparse.Namespace, seed: int, variant: str) -> dict[str, Any]:
    """Trains one variant and sums up its records. The first variant of a seed makes what the others share."""
    start = options.runs / f"start-{seed}"
    folder = options.runs / f"{variant.replace(' ', '').replace(',', '-').replace('=', '')}-seed{seed}"
    places = [f"model.path={start}/model", f"data.train={start}/train.jsonl", f"data.eval={start}/eval.jsonl"]
    evaluation = [f"eval.n={options.n}", "eval.every=1000000"]  # before the first step and after the last
    runs.train(
        folder, "sums", [f"seed={seed}", *VARIANTS[variant], *places, *evaluation, LEARNING_RATE, *options.settings]
    )
    before, *steps = read_metrics(folder)
    return {
        "variant": variant,
        "seed": seed,
        "steps": len(steps),
        "accuracy_before": before["eval/accuracy"],
        "accuracy": steps[-1]["eval/accuracy"],
        "rollouts": sum(step["response/count"] for step in steps),
        "tokens": sum(step["response/length_sum"] for step in steps),
        "sft_share": sum(step["gate/sft"] for step in steps) / sum(step["gate/questions"] for step in steps),
        "stopped": sum(step.get("rollout/stopped", 0) for step in steps),
        "trained_tokens": sum(step["train/tokens"] for step in steps),
        "seconds": sum(step["time/step"] for step in steps),
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """Means over the seeds, with the standard deviation of the accuracy over seeds."""
    lines = [
        "| variant | accuracy before | after | std over seeds | rollouts | tokens sampled | trained | SFT share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        own = [run for run in found if run["variant"] == variant]
        average = {name: mean(run[name] for run in own) for name in own[0] if name != "variant"}
        accuracies = [run["accuracy"] for run in own]
        spread = f"{stdev(accuracies):.3f}" if len(own) > 1 else "-"
        lines.append(
            f"| {variant} | {average['accuracy_before']:.3f} | {average['accuracy']:.3f} | {spread} "
            f"| {average['rollouts']:,.0f} | {average['tokens']:,.0f} | {average['trained_tokens']:,.0f} "
            f"| {average['sft_share']:.0%} |"
        )
    return "\n".join(lines) + "\n"
