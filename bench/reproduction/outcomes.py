"""What the comparison measured: trials, their metrics and evaluations, and the files that keep them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from hpt.evaluation.statistics import pass_at_k

START = "start"
"""In place of a method: the start model, before any run."""
CLEAN, WRONG = "clean", "wrong"
WITHOUT_DEMONSTRATIONS = ("grpo",)
"""Methods that do not read demonstrations."""
METRICS, EVALUATIONS, CONDITIONS = "metrics.jsonl.gz", "exams.jsonl.gz", "conditions.txt"


@dataclass(frozen=True)
class Trial:
    """One training run, or the start model. Demonstrations are "clean" or "wrong"; gamma 0 is the method's default."""

    method: str
    rates: tuple[float, ...]  # the learning rate of each stage
    seed: int
    demonstrations: str = CLEAN
    gamma: float = 0.0

    @property
    def name(self) -> str:
        gate = f"-gamma{self.gamma:g}" if self.gamma else ""
        rates = "-".join(f"{rate:g}" for rate in self.rates)
        return f"{self.demonstrations}-{self.method}{gate}-lr{rates}-seed{self.seed}"


@dataclass(frozen=True)
class Answered:
    """One held-out question: how many of n responses were correct."""

    id: str
    grade: str
    correct: int
    n: int


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

    @cached_property
    def seconds(self) -> float:
        """Seconds of rollouts, verification and training."""
        return sum(line.get("time/step", 0.0) for line in self.metrics)


def write_records(folder: Path, outcomes: Iterable[Outcome], conditions: str) -> None:
    """Write two JSONL files, with one line per step and one per question, and the conditions of all trials."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics, evaluations = [], []
    for outcome in outcomes:
        trial = asdict(outcome.trial)
        metrics += [{"trial": trial, **line} for line in outcome.metrics]
        evaluations += [{"trial": trial, **asdict(answer)} for answer in outcome.evaluation]
    for name, lines in ((METRICS, metrics), (EVALUATIONS, evaluations)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / CONDITIONS).write_text(conditions)


def read_records(folder: Path) -> tuple[list[Outcome], str]:
    """The outcomes and the conditions that `write_records` wrote."""
    found: dict[Trial, Outcome] = {}
    for name in (METRICS, EVALUATIONS):
        for text in gzip.decompress((folder / name).read_bytes()).decode().splitlines():
            line = json.loads(text)
            parts = line.pop("trial")
            trial = Trial(**parts | {"rates": tuple(parts["rates"])})
            outcome = found.setdefault(trial, Outcome(trial, [], []))
            if name == METRICS:
                outcome.metrics.append(line)
            else:
                outcome.evaluation.append(Answered(**line))
    return list(found.values()), (folder / CONDITIONS).read_text()


def by_method(outcomes: Sequence[Outcome], demonstrations: str) -> dict[str, list[Outcome]]:
    """The evaluated outcomes of each method with its own gate, the start model first.

    Methods that do not read demonstrations, and the start model, belong to every kind of demonstrations.
    """
    found: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.trial.method != START):
        trial = outcome.trial
        belongs = trial.method in (START, *WITHOUT_DEMONSTRATIONS) or trial.demonstrations == demonstrations
        if outcome.evaluation and not trial.gamma and belongs:
            found.setdefault(trial.method, []).append(outcome)
    return found


def by_gamma(outcomes: Sequence[Outcome]) -> dict[float, list[Outcome]]:
    """The evaluated outcomes of HPT with clean demonstrations, by gamma."""
    found: dict[float, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.trial.gamma):
        if outcome.evaluation and outcome.trial.method == "hpt" and outcome.trial.demonstrations == CLEAN:
            found.setdefault(outcome.trial.gamma, []).append(outcome)
    return found
