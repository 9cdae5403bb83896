"""The runs of the comparison: start models, tuning, training and evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from hpt.config.recipe import load_config
from hpt.evaluation.evaluate import RESULTS
from hpt.records.checkpoints import last_checkpoint
from hpt.records.checksums import CHECKSUMS
from hpt.records.files import read_metrics
from hpt.records.fingerprints import FINGERPRINTS
from hpt.support.named_functions import resolve

from .. import runs
from .outcomes import Answered, Outcome, Trial, kept
from .records import Records
from .task import FIRST_STAGE, METHODS, START, Pair, Task


@dataclass
class Experiments:
    """The runs of a task. folder: theirs; jobs: runs at once; settings: changes to the recipe, for every run."""

    task: Task
    folder: Path
    records: Records
    jobs: int
    settings: tuple[str, ...] = ()

    def compare(self) -> None:
        """Tune every method's learning rate in every condition, then train and evaluate on other seeds."""
        task = self.task
        pairs = [(condition, method) for condition in task.conditions for method in task.methods_with(condition)]
        for staged in (False, True):  # the second stage is tuned after the first stage's method
            self.tune([pair for pair in pairs if (METHODS[pair[1]].first is not None) == staged])
        starts = [Trial(START, (), seed, task.conditions[0]) for seed in task.seeds]
        final = [
            Trial(method, self.records.rates[condition, method], seed, condition)
            for seed in task.seeds
            for condition, method in pairs
        ]
        gated = [
            replace(trial, gamma=gamma)
            for trial in final
            if trial.method == "hpt" and trial.condition == task.conditions[0]
            for gamma in task.gammas
        ]
        self.complete([*starts, *final, *gated])

    def complete(self, trials: Iterable[Trial]) -> None:
        """Run the trials that have no record yet."""
        missing = [trial for trial in dict.fromkeys(trials) if trial not in self.records.outcomes]
        if missing and self.task.warm_up:
            runs.train(self._warm_up, self.task.recipe, [*self.task.warm_up, *self.settings])
        for seed in sorted({trial.seed for trial in missing}):
            self.make_start(seed)  # not in threads, which share the random state that draws a start model's weights
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(self.run, missing))  # the first error ends the comparison

    def make_start(self, seed: int) -> None:
        """Make the questions that all runs of a seed share, and their start model where there is no warm-up."""
        for condition, prepare in self.task.prepare.items():
            places = self._places(Trial("hpt", (), seed, condition))
            config = load_config(self.task.recipe, [f"output={self._start(seed)}", f"seed={seed}", *places])
            resolve(prepare, field="prepare")(config)

    def tune(self, pairs: Iterable[Pair]) -> None:
        """Choose the learning rates of the methods that have none in the records.

        Starts with the task's rates, and adds those beside the best one on the ladder until it has a worse one on both
        sides, or the ladder ends. Of a method in two stages, the second rate is tuned.
        """
        rates = {pair: set(self.task.rates) for pair in pairs if pair not in self.records.rates}
        while rates:
            tried = {pair: self._tuning_trials(pair, rates[pair]) for pair in rates}
            self.complete(trial for trials in tried.values() for trial in trials)
            best = {pair: self._best_rates(trials) for pair, trials in tried.items()}
            wider = {pair: self._neighbours(best[pair][-1]) - rates[pair] for pair in rates}
            if not any(wider.values()):
                self.records.choose(best, self.task.tuning_seeds)
                return
            for pair in rates:
                rates[pair] |= wider[pair]

    def _neighbours(self, rate: float) -> set[float]:
        ladder = self.task.ladder
        place = ladder.index(rate)
        return set(ladder[max(0, place - 1) : place + 2])

    def _tuning_trials(self, pair: Pair, rates: set[float]) -> list[Trial]:
        condition, method = pair
        first = METHODS[method].first
        before = (self._first_rate((condition, first)),) if first else ()
        return [
            Trial(method, (*before, rate), seed, condition) for rate in sorted(rates) for seed in self.task.tuning_seeds
        ]

    def _first_rate(self, pair: Pair) -> float:
        """Of a first stage: the rate at which the method's own runs are best at the step where the stage ends."""
        best, rates = self.records.rates[pair][-1], set[float]()
        while wider := self._neighbours(best) - rates:
            rates |= wider
            trials = self._tuning_trials(pair, rates)
            self.complete(trials)
            best = self._best_rates(trials, FIRST_STAGE)[-1]
        return best

    def _best_rates(self, trials: Iterable[Trial], share: float = 1.0) -> tuple[float, ...]:
        """The rates with the highest held-out accuracy, in the mean of tuning seeds; the smallest of several.

        share: of the steps, after which accuracy is measured.
        """
        accuracies: dict[tuple[float, ...], list[float]] = {}
        for trial in trials:
            accuracies.setdefault(trial.rates, []).append(self.records.outcomes[trial].accuracy_after(share))
        return max(sorted(accuracies), key=lambda rates: mean(accuracies[rates]))

    def run(self, trial: Trial) -> None:
        """Train and evaluate, and record the outcome. Runs of tuning are not evaluated."""
        if trial.method != START:
            self.train(trial)
        if trial.seed in self.task.seeds:
            self.evaluate(trial)
        self.records.add(self.outcome(trial))
        print(f"done: {trial.name}", file=sys.stderr, flush=True)

    def outcome(self, trial: Trial) -> Outcome:
        """What the run and the evaluation of a trial left on the disk."""
        metrics = [kept(line) for line in read_metrics(self._run_folder(trial))] if trial.method != START else []
        results = self._evaluation_folder(trial) / RESULTS
        answers = []
        if results.is_file():
            for text in results.read_text().splitlines():
                line = json.loads(text)
                answers.append(Answered(line["id"], line["grade"], line["correct"], line["n"], mean(line["lengths"])))
        return Outcome(trial, metrics, answers)

    def _run_folder(self, trial: Trial) -> Path:
        return self.folder / "runs" / trial.name

    def _evaluation_folder(self, trial: Trial) -> Path:
        return self.folder / "exams" / f"{trial.name}-n{self.task.n}"

    def train(self, trial: Trial) -> None:
        method = METHODS[trial.method]
        settings = [f"seed={trial.seed}", *method.settings]
        if method.first:
            first, second = ({"optimizer": {"lr": rate}} for rate in trial.rates)
            stages = [
                {"method": "sft", "steps": FIRST_STAGE, "settings": first},
                {"method": "grpo", "settings": second},
            ]
            settings.append(f"stages={json.dumps(stages)}")
        else:
            settings.append(f"optimizer.lr={trial.rates[0]}")
        if trial.gamma:
            settings.append(f"gate.gamma={trial.gamma}")
        runs.train(self._run_folder(trial), self.task.recipe, [*settings, *self._places(trial), *self.settings])
        leave_the_model(last_checkpoint(self._run_folder(trial)))

    def evaluate(self, trial: Trial) -> None:
        start = self._start(trial.seed)
        model = self._model(trial.seed) if trial.method == START else self._run_folder(trial)
        arguments = ["--data", str(start / "eval.jsonl"), "--n", str(self.task.n), "--temperature", "1", "--top-p", "1"]
        runs.evaluate(model, self._evaluation_folder(trial), [*arguments, *self.task.exam])

    def _start(self, seed: int) -> Path:
        return self.folder / "starts" / f"seed{seed}"

    @property
    def _warm_up(self) -> Path:
        return self.folder / "warm-up"

    def _model(self, seed: int) -> Path:
        return last_checkpoint(self._warm_up) if self.task.warm_up else self._start(seed) / "model"

    def _places(self, trial: Trial) -> list[str]:
        start = self._start(trial.seed)
        return [
            f"model.path={self._model(trial.seed)}",
            f"data.train={start}/train-{trial.condition}.jsonl",
            f"data.eval={start}/eval.jsonl",
        ]


def leave_the_model(checkpoint: Path) -> None:
    """Remove what only a resume needs: the trainer's state, two thirds of a checkpoint, and what vouches for it."""
    for name in (FINGERPRINTS, CHECKSUMS, "trainer_state*"):
        for path in checkpoint.glob(name):
            path.unlink()
