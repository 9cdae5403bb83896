"""The paper's comparison at the scale of a CPU: SFT, GRPO, SFT then GRPO, LUFFY, SRFT and HPT from the same start.

The task is `hpt train sums`: sums that the start model solves always, sometimes and never. Every method gets the same
questions and the same number of optimizer updates, and its learning rate from the same grid, chosen by held-out
accuracy on a seed of its own that is not reported (the stages of SFT then GRPO take those of SFT and of GRPO). Then,
over several seeds: every method with clean demonstrations, every one that reads demonstrations with 40% of them wrong,
and HPT with clean ones at other gammas of the gate. The last checkpoints are examined with n responses a held-out
question, for pass@k.

Runs that are finished are kept and unfinished ones continued, so the command can be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench import _reproduction_figure, _runs
from bench._reproduction import (
    CLEAN,
    WITHOUT_DEMONSTRATIONS,
    WRONG,
    Answered,
    Outcome,
    Trial,
    read_records,
    report,
    write_records,
)
from hpt.config.recipe import load_config
from hpt.evaluation.evaluate import RESULTS as ANSWERS
from hpt.records.files import read_metrics
from hpt.support.named_functions import resolve

RESULTS = Path(__file__).parent / "results" / "reproduce"
STAGED = "sft-then-grpo"
METHODS = ("sft", "grpo", "sft-then-grpo", "luffy", "srft", "hpt")
LEARNING_RATES = (1.5e-5, 5e-5, 1.5e-4, 4.5e-4, 1.35e-3)
GAMMAS = (0.125, 0.25, 0.5)
"""Beside 0, as shares of the rollouts."""
PREPARE = {CLEAN: "hpt.demos.sums:prepare", WRONG: "hpt.demos.sums:prepare_wrong"}


@dataclass
class Experiments:
    """The folder of all runs, and how they are made."""

    folder: Path
    settings: Sequence[str]
    n: int
    jobs: int

    def make_start(self, seed: int) -> None:
        """The start model and the questions of a seed, which all of its runs share."""
        for demonstrations, prepare in PREPARE.items():
            places = self._places(Trial("hpt", (), seed, demonstrations))
            config = load_config("sums", [f"output={self.folder}", f"seed={seed}", *places])
            resolve(prepare, field="prepare")(config)

    def train(self, trials: Iterable[Trial]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._train, trials))

    def examine(self, trials: Iterable[Trial]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._examine, trials))

    def best_learning_rate(self, method: str, seed: int, rates: Sequence[float]) -> float:
        """The rate of the highest last held-out accuracy on the tuning seed; of equal ones the smallest."""
        accuracies = {rate: read_metrics(self.run(Trial(method, (rate,), seed)))[-1]["eval/accuracy"] for rate in rates}
        return max(sorted(rates), key=lambda rate: accuracies[rate])

    def outcome(self, trial: Trial) -> Outcome:
        """What the trial's run and examination left on the disk."""
        metrics = read_metrics(self.run(trial)) if trial.method != "start" else []
        results = self.exam(trial) / ANSWERS
        lines = map(json.loads, results.read_text().splitlines()) if results.is_file() else ()
        exam = [Answered(line["id"], line["grade"], line["correct"], line["n"]) for line in lines]
        return Outcome(trial, metrics, exam)

    def run(self, trial: Trial) -> Path:
        return self.folder / "runs" / trial.name

    def exam(self, trial: Trial) -> Path:
        return self.folder / "exams" / trial.name

    def _places(self, trial: Trial) -> list[str]:
        start = self.folder / "starts" / f"seed{trial.seed}"
        return [
            f"model.path={start}/model",
            f"data.train={start}/train-{trial.demonstrations}.jsonl",
            f"data.eval={start}/eval.jsonl",
        ]

    def _train(self, trial: Trial) -> None:
        chosen = [f"method={trial.method}", f"seed={trial.seed}"]
        if trial.method == STAGED:
            first, second = ({"optimizer": {"lr": rate}} for rate in trial.rates)
            stages = [{"method": "sft", "steps": 0.5, "settings": first}, {"method": "grpo", "settings": second}]
            chosen.append(f"stages={json.dumps(stages)}")
        else:
            chosen.append(f"optimizer.lr={trial.rates[0]}")
        gate = [f"gate.gamma={trial.gamma}"] if trial.gamma else []
        _runs.train(self.run(trial), "sums", [*chosen, *gate, *self._places(trial), *self.settings])
        print(f"trained {trial.name}", file=sys.stderr, flush=True)

    def _examine(self, trial: Trial) -> None:
        start = self.folder / "starts" / f"seed{trial.seed}"
        model = self.run(trial) if trial.method != "start" else start / "model"
        arguments = ["--data", str(start / "eval.jsonl"), "--n", str(self.n), "--temperature", "1", "--top-p", "1"]
        style = ["--style", "plain", "--verifier", "boxed", "--max-tokens", "64", "--batch-size", "128"]
        _runs.evaluate(model, self.exam(trial), arguments + style)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--tuning-seed", type=int, default=100, metavar="SEED", help="default 100")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=LEARNING_RATES, metavar="LR")
    parser.add_argument("--n", type=int, default=16, help="responses a question in the last examination (default 16)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of table, figures and records")
    parser.add_argument("--redraw", action="store_true", help="only table and figures, from the records in --output")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, for every run")
    options = parser.parse_args(argv)
    if options.redraw:
        draw(options.output)
        return 0
    if options.tuning_seed in options.seeds:
        parser.error(f"--tuning-seed {options.tuning_seed} must not be one of --seeds: what it chose is not reported")
    with _runs.hold(options.runs):
        run(options)
    draw(options.output)
    return 0


def run(options: argparse.Namespace) -> None:
    """Trains, examines and writes the records."""
    experiments = Experiments(options.runs, options.settings, options.n, options.jobs)
    for seed in (options.tuning_seed, *options.seeds):
        experiments.make_start(seed)
    tuned = dict.fromkeys(["sft", "grpo"] if STAGED in options.methods else [])
    tuned |= dict.fromkeys(method for method in options.methods if method != STAGED)
    tuning = [Trial(method, (rate,), options.tuning_seed) for method in tuned for rate in options.learning_rates]
    experiments.train(tuning)
    best = {
        method: experiments.best_learning_rate(method, options.tuning_seed, options.learning_rates) for method in tuned
    }
    rates = {method: (best[method],) if method != STAGED else (best["sft"], best["grpo"]) for method in options.methods}
    print(f"learning rates: {rates}", file=sys.stderr)
    clean = [Trial(method, rates[method], seed) for seed in options.seeds for method in options.methods]
    wrong = [replace(trial, demonstrations=WRONG) for trial in clean if trial.method not in WITHOUT_DEMONSTRATIONS]
    gated = [replace(trial, gamma=gamma) for trial in clean if trial.method == "hpt" for gamma in GAMMAS]
    starts = [Trial("start", (), seed) for seed in options.seeds]
    experiments.train([*clean, *gated, *wrong])
    experiments.examine([*starts, *clean, *gated, *wrong])
    outcomes = [experiments.outcome(trial) for trial in (*tuning, *starts, *clean, *wrong, *gated)]
    conditions = f"{' '.join(['Recipe `sums`', *options.settings])}; {_runs.machine()}"
    write_records(options.output, outcomes, conditions)


def draw(folder: Path) -> None:
    """Prints and writes the table, and draws the figure, from the records in `folder` alone."""
    outcomes, conditions = read_records(folder)
    text = f"{report(outcomes)}\n{conditions}.\n"
    (folder / "table.md").write_text(text)
    _reproduction_figure.draw(outcomes, folder / "summary.png")
    print(text)
