"""The demo by several methods and seeds: what HPT, GRPO and SFT reach from the same start model.

Each run is `hpt train demo method=M seed=S` from the model that seed S warms up. Finished runs are kept and unfinished
ones continued, so the command can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hpt.records.files import read_metrics
from hpt.report import report, summary_figure

from .. import runs
from ..commit import last_commit

RESULTS = Path(__file__).parents[1] / "results" / "demo"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="demo", help="recipe to run (default demo)")
    parser.add_argument("--methods", nargs="+", default=["hpt", "grpo", "sft"], metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-demo"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of table and figures")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, for every run")
    options = parser.parse_args(argv)
    wanted = [(method, seed) for method in options.methods for seed in options.seeds]
    with runs.hold(options.runs), ThreadPoolExecutor(options.jobs) as pool:
        # The first run of a seed makes the start model and the data that the others share.
        first = [run for run in wanted if run[0] == options.methods[0]]
        others = [run for run in wanted if run not in first]
        for group in (first, others):
            list(pool.map(lambda run: _train(options, *run), group))
    folders = {run: _folder(options, *run) for run in wanted}
    options.output.mkdir(parents=True, exist_ok=True)
    table = _table({run: read_metrics(folder) for run, folder in folders.items()}, options)
    (options.output / "table.md").write_text(table)
    print(table)
    summary_figure(list(folders.values()), options.output / "summary.png")
    print(report(list(folders.values()), options.runs / "report"))
    records = [
        {"method": method, "seed": seed, **line}
        for (method, seed), folder in folders.items()
        for line in read_metrics(folder)
    ]
    (options.output / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return 0


def _folder(options: argparse.Namespace, method: str, seed: int) -> Path:
    return Path(options.runs) / f"{method}-{seed}"


def _train(options: argparse.Namespace, method: str, seed: int) -> None:
    start = Path(options.runs) / f"start-{seed}"
    places = [f"model.path={start}/model", f"data.train={start}/train.jsonl", f"data.eval={start}/eval.jsonl"]
    changes = [f"method={method}", f"seed={seed}", *places, *options.settings]
    runs.train(_folder(options, method, seed), options.recipe, changes)


def _table(metrics: dict[tuple[str, int], list[dict[str, Any]]], options: argparse.Namespace) -> str:
    """Held-out accuracy before and after, the share of SFT questions in the first and last tenth, and the seconds."""
    lines = [
        "| method | seed | accuracy before | after | SFT share, first tenth | last tenth | rollouts + training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (method, seed), records in metrics.items():
        steps = [record for record in records if "train/loss" in record]
        evaluations = [record["eval/accuracy"] for record in records if "eval/accuracy" in record]
        tenth = max(1, len(steps) // 10)
        shares = [_share(part) for part in (steps[:tenth], steps[-tenth:])]
        seconds = sum(record.get("time/step", 0.0) for record in steps)
        lines.append(
            f"| {method} | {seed} | {evaluations[0]:.3f} | {evaluations[-1]:.3f} "
            f"| {shares[0]:.2f} | {shares[1]:.2f} | {seconds:.0f} |"
        )
    recipe = " ".join([f"Recipe `{options.recipe}`", *options.settings])
    commit = last_commit("kernels", "hpt", "bench")
    return "\n".join(lines) + f"\n\n{recipe}; commit {commit}, {runs.machine()}.\n"


def _share(steps: Sequence[dict[str, Any]]) -> float:
    return sum(step["gate/sft"] for step in steps) / sum(step["gate/questions"] for step in steps)
