"""The runs of the comparison: start models, tuning, training and evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from hpt.config.recipe import load_config
from hpt.evaluation.evaluate import RESULTS
from hpt.records.checkpoints import last_checkpoint
from hpt.records.files import read_metrics
from hpt.support.named_functions import resolve

from .. import runs
from .outcomes import Answered, Outcome, Trial, kept
from .task import METHODS, START, Task

Pair = tuple[str, str]
"""A condition and the name of a method."""

LADDER = (1.1e-5, 3.3e-5, 1e-4, 3e-4, 9e-4, 2.7e-3, 8.1e-3)
"""The learning rates that tuning may try."""


@dataclass
class Experiments:
    """The folder of all runs of a task. jobs: runs at once; settings: changes to the recipe, for every run."""

    task: Task
    folder: Path
    jobs: int
    settings: tuple[str, ...] = ()

    def compare(self) -> list[Outcome]:
        """Tune every method's learning rate in every condition, then train and evaluate on other seeds."""
        task = self.task
        if task.warm_up:
            runs.train(self._warm_up, task.recipe, [*task.warm_up, *self.settings])
        self.at_once(self.make_start, (*task.tuning_seeds, *task.seeds))
        pairs = [(condition, method) for condition in task.conditions for method in task.methods_with(condition)]
        best: dict[Pair, tuple[float, ...]] = {}
        tuning = []
        for staged in (False, True):  # the second stage is tuned after the first stage's method
            tuning += self.tune([pair for pair in pairs if (METHODS[pair[1]].first is not None) == staged], best)
        for (condition, method), rates in best.items():
            print(f"learning rate of {method}, {condition}: {rates}", file=sys.stderr, flush=True)
        starts = [Trial(START, (), seed, task.conditions[0]) for seed in task.seeds]
        final = [
            Trial(method, best[condition, method], seed, condition)
            for seed in task.seeds
            for condition, method in pairs
        ]
        gated = [
            replace(trial, gamma=gamma)
            for trial in final
            if trial.method == "hpt" and trial.condition == task.conditions[0]
            for gamma in task.gammas
        ]
        self.at_once(self.train, [*final, *gated])
        self.at_once(self.evaluate, [*starts, *final, *gated])
        return [self.outcome(trial) for trial in (*tuning, *starts, *final, *gated)]

    def at_once(self, work: Callable[..., None], items: Iterable[object]) -> None:
        """`work` on every item, `jobs` of them at a time. The first error ends the comparison."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(work, items))

    def make_start(self, seed: int) -> None:
        """Make the questions that all runs of a seed share, and their start model where there is no warm-up."""
        for condition, prepare in self.task.prepare.items():
            places = self._places(Trial("hpt", (), seed, condition))
            config = load_config(self.task.recipe, [f"output={self._start(seed)}", f"seed={seed}", *places])
            resolve(prepare, field="prepare")(config)

    def tune(self, pairs: Sequence[Pair], best: dict[Pair, tuple[float, ...]]) -> list[Trial]:
        """Adds the best rates of every method to `best`, and returns all that was tried.

        Starts with the task's rates, and adds those beside the best one on the ladder until it has a worse one on both
        sides. A method in two stages has its first rate from `best`, and its second is tuned.
        """
        rates = {pair: set(self.task.rates) for pair in pairs}
        while True:
            tried = {pair: self._tuning_trials(pair, rates[pair], best) for pair in pairs}
            self.at_once(self.train, [trial for trials in tried.values() for trial in trials])
            best |= {pair: self._best_rates(trials) for pair, trials in tried.items()}
            wider = {pair: _neighbours(best[pair][-1]) - rates[pair] for pair in pairs}
            if not any(wider.values()):
                return [trial for trials in tried.values() for trial in trials]
            for pair in pairs:
                rates[pair] |= wider[pair]

    def _tuning_trials(self, pair: Pair, rates: set[float], best: dict[Pair, tuple[float, ...]]) -> list[Trial]:
        condition, method = pair
        first = METHODS[method].first
        before = best[condition, first][-1:] if first else ()
        return [
            Trial(method, (*before, rate), seed, condition) for rate in sorted(rates) for seed in self.task.tuning_seeds
        ]

    def _best_rates(self, trials: Iterable[Trial]) -> tuple[float, ...]:
        """The rates with the highest last held-out accuracy, in the mean of tuning seeds; the smallest of several."""
        accuracies: dict[tuple[float, ...], list[float]] = {}
        for trial in trials:
            accuracies.setdefault(trial.rates, []).append(self.outcome(trial).last_accuracy)
        return max(sorted(accuracies), key=lambda rates: mean(accuracies[rates]))

    def outcome(self, trial: Trial) -> Outcome:
        """What the run and the evaluation of a trial left on the disk."""
        metrics = [kept(line) for line in read_metrics(self.run(trial))] if trial.method != START else []
        results = self.evaluation(trial) / RESULTS
        answers = []
        if results.is_file():
            for text in results.read_text().splitlines():
                line = json.loads(text)
                answers.append(Answered(line["id"], line["grade"], line["correct"], line["n"], mean(line["lengths"])))
        return Outcome(trial, metrics, answers)

    def run(self, trial: Trial) -> Path:
        return self.folder / "runs" / trial.name

    def evaluation(self, trial: Trial) -> Path:
        return self.folder / "exams" / trial.name

    def train(self, trial: Trial) -> None:
        method = METHODS[trial.method]
        settings = [f"seed={trial.seed}", *method.settings]
        if method.first:
            first, second = ({"optimizer": {"lr": rate}} for rate in trial.rates)
            stages = [{"method": "sft", "steps": 0.5, "settings": first}, {"method": "grpo", "settings": second}]
            settings.append(f"stages={json.dumps(stages)}")
        else:
            settings.append(f"optimizer.lr={trial.rates[0]}")
        if trial.gamma:
            settings.append(f"gate.gamma={trial.gamma}")
        runs.train(self.run(trial), self.task.recipe, [*settings, *self._places(trial), *self.settings])
        for state in last_checkpoint(self.run(trial)).glob("trainer_state*"):
            state.unlink()  # two thirds of a checkpoint, and the run is finished
        print(f"trained {trial.name}", file=sys.stderr, flush=True)

    def evaluate(self, trial: Trial) -> None:
        start = self._start(trial.seed)
        model = self._model(trial.seed) if trial.method == START else self.run(trial)
        arguments = ["--data", str(start / "eval.jsonl"), "--n", str(self.task.n), "--temperature", "1", "--top-p", "1"]
        runs.evaluate(model, self.evaluation(trial), [*arguments, *self.task.exam])
        print(f"evaluated {trial.name}", file=sys.stderr, flush=True)

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


def _neighbours(rate: float) -> set[float]:
    place = LADDER.index(rate)
    return set(LADDER[max(0, place - 1) : place + 2]) - {rate}
