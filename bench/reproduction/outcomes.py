"""What the comparison measured: trials, their metrics and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from hpt.evaluation.statistics import pass_at_k

from .task import METHODS, START, TITLES

KEPT = (
    "step",
    "reward/mean",
    "gate/sft",
    "gate/questions",
    "entropy/mean",
    "response/length",
    "response/length_sum",
    "train/updates",
    "train/tokens",
    "train/rows_sft",
    "train/rows_off_policy",
    "time/step",
)
"""The metrics of a step that are kept, besides those of evaluations."""


@dataclass(frozen=True)
class Trial:
    """One training run, or the start model. gamma 0 is the method's default."""

    method: str
    rates: tuple[float, ...]  # the learning rate of each stage
    seed: int
    condition: str
    gamma: float = 0.0

    @property
    def name(self) -> str:
        gate = f"-gamma{self.gamma:g}" if self.gamma else ""
        rates = "-".join(f"{rate:g}" for rate in self.rates)
        return f"{self.condition}-{self.method}{gate}-lr{rates}-seed{self.seed}"


@dataclass(frozen=True)
class Answered:
    """One held-out question: how many of n responses were correct, and their mean length in tokens."""

    id: str
    grade: str
    correct: int
    n: int
    length: float

    @property
    def solved(self) -> bool:
        """Whether at least half of the responses are correct."""
        return 2 * self.correct >= self.n


@dataclass(frozen=True)
class Outcome:
    """A trial's lines of metrics.jsonl, and the evaluation of its last checkpoint (empty for tuning runs)."""

    trial: Trial
    metrics: list[dict[str, Any]]
    evaluation: list[Answered]

    def accuracy(self, grade: str | None = None) -> float:
        """Over all questions, or those of one grade."""
        return mean(answer.correct / answer.n for answer in self.evaluation if grade in (None, answer.grade))

    def pass_at(self, k: int) -> float:
        return mean(pass_at_k(answer.n, answer.correct, k) for answer in self.evaluation)

    @property
    def length(self) -> float:
        """Mean tokens of a response to a held-out question."""
        return mean(answer.length for answer in self.evaluation)

    def accuracy_after(self, share: float = 1.0) -> float:
        """Held-out accuracy of the run's own last evaluation in this share of its steps."""
        last = share * self.metrics[-1]["step"]
        return [
            float(line["eval/accuracy"]) for line in self.metrics if "eval/accuracy" in line and line["step"] <= last
        ][-1]

    @property
    def solved(self) -> set[str]:
        return {answer.id for answer in self.evaluation if answer.solved}

    def total(self, metric: str) -> float:
        """A metric summed over the steps."""
        return sum(line.get(metric, 0) for line in self.metrics)

    @property
    def updates(self) -> float:
        """Optimizer updates of the steps that had something to train on."""
        return sum(line["train/updates"] for line in self.metrics if line.get("train/tokens"))

    @property
    def demonstrations(self) -> float:
        """Demonstrations trained on, each as often as it was. One that is trained by two signals counts once."""
        return sum(demonstrations_of(line) for line in self.metrics)


def demonstrations_of(line: dict[str, Any]) -> float:
    """Demonstrations that a step trained on."""
    return float(max(line.get("train/rows_sft", 0), line.get("train/rows_off_policy", 0)))


def kept(line: dict[str, Any]) -> dict[str, Any]:
    """What the records keep of a step's metrics; numbers with 5 digits."""
    names = [name for name in line if name in KEPT or name.startswith("eval/accuracy")]
    return {name: float(f"{line[name]:.5g}") if isinstance(line[name], float) else line[name] for name in names}


def by_method(outcomes: Sequence[Outcome], condition: str) -> dict[str, list[Outcome]]:
    """The evaluated outcomes of each method with its own gate, the start model first.

    Methods that do not read demonstrations, and the start model, belong to every condition.
    """
    found: dict[str, list[Outcome]] = {}
    for name in (START, *METHODS):
        for outcome in sorted(outcomes, key=lambda outcome: outcome.trial.seed):
            trial = outcome.trial
            belongs = name == START or not METHODS[name].demonstrations or trial.condition == condition
            if trial.method == name and outcome.evaluation and not trial.gamma and belongs:
                found.setdefault(name, []).append(outcome)
    return found


def by_condition(outcomes: Sequence[Outcome]) -> dict[str, dict[str, list[Outcome]]]:
    """As `by_method`, for every condition that some evaluated run has, clean demonstrations first."""
    found = {outcome.trial.condition for outcome in outcomes if outcome.evaluation and outcome.trial.method != START}
    return {condition: by_method(outcomes, condition) for condition in TITLES if condition in found}


def by_gamma(outcomes: Sequence[Outcome], condition: str) -> dict[float, list[Outcome]]:
    """The evaluated outcomes of HPT, by gamma."""
    found: dict[float, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.trial.gamma, outcome.trial.seed)):
        if outcome.evaluation and outcome.trial.method == "hpt" and outcome.trial.condition == condition:
            found.setdefault(outcome.trial.gamma, []).append(outcome)
    return found
