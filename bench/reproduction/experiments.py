"""The runs of the comparison: start models, training, evaluation, and which trials there are."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from hpt.config.recipe import load_config
from hpt.evaluation.evaluate import RESULTS
from hpt.records.files import read_metrics
from hpt.support.named_functions import resolve

from .. import runs
from .outcomes import CLEAN, START, WITHOUT_DEMONSTRATIONS, WRONG, Answered, Outcome, Trial

STAGED = "sft-then-grpo"
GAMMAS = (0.125, 0.25, 0.5)
"""Values of gamma other than 0, as shares of the rollouts."""
PREPARE = {CLEAN: "hpt.demos.sums:prepare", WRONG: "hpt.demos.sums:prepare_wrong"}


@dataclass
class Experiments:
    """The folder of all runs. settings: changes to the recipe; n: responses per held-out question; jobs: at once."""

    folder: Path
    settings: Sequence[str]
    n: int
    jobs: int

    def compare(
        self, methods: Sequence[str], seeds: Sequence[int], tuning_seed: int, learning_rates: Sequence[float]
    ) -> list[Outcome]:
        """Tune the learning rate of every method on the tuning seed, then train and evaluate on the other seeds."""
        for seed in (tuning_seed, *seeds):
            self.make_start(seed)
        tuned = [method for method in methods if method != STAGED]
        if STAGED in methods:  # its stages take the learning rates of these two
            tuned = list(dict.fromkeys(["sft", "grpo", *tuned]))
        tuning = [Trial(method, (rate,), tuning_seed) for method in tuned for rate in learning_rates]
        self.train(tuning)
        best = {method: self.best_learning_rate(method, tuning_seed, learning_rates) for method in tuned}
        rates = {method: (best["sft"], best["grpo"]) if method == STAGED else (best[method],) for method in methods}
        print(f"learning rates: {rates}", file=sys.stderr)
        starts = [Trial(START, (), seed) for seed in seeds]
        clean = [Trial(method, rates[method], seed) for seed in seeds for method in methods]
        wrong = [replace(trial, demonstrations=WRONG) for trial in clean if trial.method not in WITHOUT_DEMONSTRATIONS]
        gated = [replace(trial, gamma=gamma) for trial in clean if trial.method == "hpt" for gamma in GAMMAS]
        self.train([*clean, *gated, *wrong])
        self.evaluate([*starts, *clean, *gated, *wrong])
        return [self.outcome(trial) for trial in (*tuning, *starts, *clean, *wrong, *gated)]

    def make_start(self, seed: int) -> None:
        """Make the start model and the questions that all runs of a seed share."""
        for demonstrations, prepare in PREPARE.items():
            places = self._places(Trial("hpt", (), seed, demonstrations))
            config = load_config("sums", [f"output={self.folder}", f"seed={seed}", *places])
            resolve(prepare, field="prepare")(config)

    def train(self, trials: Iterable[Trial]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._train, trials))

    def evaluate(self, trials: Iterable[Trial]) -> None:
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self._evaluate, trials))

    def best_learning_rate(self, method: str, seed: int, rates: Sequence[float]) -> float:
        """The rate with the highest last held-out accuracy on the tuning seed; the smallest of several."""
        accuracies = {rate: read_metrics(self.run(Trial(method, (rate,), seed)))[-1]["eval/accuracy"] for rate in rates}
        return max(sorted(rates), key=lambda rate: accuracies[rate])

    def outcome(self, trial: Trial) -> Outcome:
        """What the run and the evaluation of a trial left on the disk."""
        metrics = read_metrics(self.run(trial)) if trial.method != START else []
        results = self.evaluation(trial) / RESULTS
        answers = []
        if results.is_file():
            for text in results.read_text().splitlines():
                line = json.loads(text)
                answers.append(Answered(line["id"], line["grade"], line["correct"], line["n"]))
        return Outcome(trial, metrics, answers)

    def run(self, trial: Trial) -> Path:
        return self.folder / "runs" / trial.name

    def evaluation(self, trial: Trial) -> Path:
        return self.folder / "exams" / trial.name

    def _places(self, trial: Trial) -> list[str]:
        start = self.folder / "starts" / f"seed{trial.seed}"
        return [
            f"model.path={start}/model",
            f"data.train={start}/train-{trial.demonstrations}.jsonl",
            f"data.eval={start}/eval.jsonl",
        ]

    def _train(self, trial: Trial) -> None:
        settings = [f"method={trial.method}", f"seed={trial.seed}"]
        if trial.method == STAGED:
            first, second = ({"optimizer": {"lr": rate}} for rate in trial.rates)
            stages = [{"method": "sft", "steps": 0.5, "settings": first}, {"method": "grpo", "settings": second}]
            settings.append(f"stages={json.dumps(stages)}")
        else:
            settings.append(f"optimizer.lr={trial.rates[0]}")
        if trial.gamma:
            settings.append(f"gate.gamma={trial.gamma}")
        runs.train(self.run(trial), "sums", [*settings, *self._places(trial), *self.settings])
        print(f"trained {trial.name}", file=sys.stderr, flush=True)

    def _evaluate(self, trial: Trial) -> None:
        start = self.folder / "starts" / f"seed{trial.seed}"
        model = start / "model" if trial.method == START else self.run(trial)
        arguments = ["--data", str(start / "eval.jsonl"), "--n", str(self.n), "--temperature", "1", "--top-p", "1"]
        style = ["--style", "plain", "--verifier", "boxed", "--max-tokens", "64", "--batch-size", "128"]
        runs.evaluate(model, self.evaluation(trial), arguments + style)
