"""What `bench reproduce` found: the records of its runs and examinations, and the table they make."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from hpt.evaluation.statistics import pass_at_k, permutation_test

CLEAN, WRONG = "clean", "wrong"
WITHOUT_DEMONSTRATIONS = ("grpo",)
"""Methods whose runs are the same whatever the demonstrations."""
METRICS, EXAMS, CONDITIONS = "metrics.jsonl.gz", "exams.jsonl.gz", "conditions.txt"


@dataclass(frozen=True)
class Trial:
    """One training run. Its demonstrations are "clean" or "wrong"; gamma 0 is the method's own gate.

    The method "start" stands for the start model, which no run has changed yet.
    """

    method: str
    rates: tuple[float, ...]  # learning rate of each stage
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
    """One held-out question of an examination: how many of n responses were right."""

    id: str
    grade: str
    correct: int
    n: int


@dataclass(frozen=True)
class Outcome:
    """A trial's lines of metrics.jsonl, and its last checkpoint's examination (none for tuning runs)."""

    trial: Trial
    metrics: list[dict[str, Any]]
    exam: list[Answered]

    def accuracy(self, grade: str | None = None) -> float:
        return mean(answer.correct / answer.n for answer in self.exam if grade in (None, answer.grade))

    def pass_at(self, k: int) -> float:
        return mean(pass_at_k(answer.n, answer.correct, k) for answer in self.exam)

    @cached_property
    def seconds(self) -> float:
        """Of rollouts, verification and training."""
        return sum(line.get("time/step", 0.0) for line in self.metrics)


def write_records(folder: Path, outcomes: Iterable[Outcome], conditions: str) -> None:
    """Two files of JSON lines, one a step and one a question, each with its trial, and the `conditions` of all."""
    folder.mkdir(parents=True, exist_ok=True)
    metrics, exams = [], []
    for outcome in outcomes:
        trial = asdict(outcome.trial)
        metrics += [{"trial": trial, **line} for line in outcome.metrics]
        exams += [{"trial": trial, **asdict(answer)} for answer in outcome.exam]
    for name, lines in ((METRICS, metrics), (EXAMS, exams)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / CONDITIONS).write_text(conditions)


def read_records(folder: Path) -> tuple[list[Outcome], str]:
    """The outcomes and the conditions that `write_records` wrote."""
    found: dict[Trial, Outcome] = {}
    for name in (METRICS, EXAMS):
        for text in gzip.decompress((folder / name).read_bytes()).decode().splitlines():
            line = json.loads(text)
            parts = line.pop("trial")
            trial = Trial(**parts | {"rates": tuple(parts["rates"])})
            outcome = found.setdefault(trial, Outcome(trial, [], []))
            if name == METRICS:
                outcome.metrics.append(line)
            else:
                outcome.exam.append(Answered(**line))
    return list(found.values()), (folder / CONDITIONS).read_text()


def of_methods(outcomes: Sequence[Outcome], demonstrations: str) -> dict[str, list[Outcome]]:
    """method -> its examined outcomes under its own gate, the start model first."""
    found: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.trial.method != "start"):
        trial = outcome.trial
        same = trial.method in ("start", *WITHOUT_DEMONSTRATIONS) or trial.demonstrations == demonstrations
        if outcome.exam and not trial.gamma and same:
            found.setdefault(trial.method, []).append(outcome)
    return found


def of_gammas(outcomes: Sequence[Outcome]) -> dict[float, list[Outcome]]:
    """gamma -> the outcomes of HPT with it, clean demonstrations throughout."""
    found: dict[float, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: outcome.trial.gamma):
        if outcome.exam and outcome.trial.method == "hpt" and outcome.trial.demonstrations == CLEAN:
            found.setdefault(outcome.trial.gamma, []).append(outcome)
    return found


def report(outcomes: Sequence[Outcome]) -> str:
    """All tables, as Markdown."""
    parts = []
    for demonstrations, title in ((CLEAN, "Clean demonstrations"), (WRONG, "40% of the demonstrations wrong")):
        methods = of_methods(outcomes, demonstrations)
        if len(methods) > 1:
            parts += [f"## {title}", "", _finding(methods), "", *_methods_table(methods), ""]
            parts += [*_differences_table(methods), ""]
    gammas = of_gammas(outcomes)
    if len(gammas) > 1:
        parts += ["## The gate of HPT: SFT where at most this share of the rollouts is right", ""]
        parts += [*_gammas_table(gammas), ""]
    tuned = [outcome for outcome in outcomes if not outcome.exam]
    if tuned:
        parts += ["## Learning rates tried, on a seed of their own", "", *_tuning_table(tuned), ""]
    return "\n".join(parts)


def _finding(methods: dict[str, list[Outcome]]) -> str:
    accuracies = {name: mean(outcome.accuracy() for outcome in outcomes) for name, outcomes in methods.items()}
    ranking = sorted(accuracies, key=lambda name: -accuracies[name])
    listed = ", ".join(
        f"{f'`{name}`' if name != 'start' else 'the start model'} {accuracies[name]:.3f}" for name in ranking
    )
    return f"By mean accuracy: {listed}."


def _methods_table(methods: dict[str, list[Outcome]]) -> list[str]:
    first = next(iter(methods.values()))[0]
    grades = list(dict.fromkeys(answer.grade for answer in first.exam))
    n = first.exam[0].n
    head = ["method", "lr", "accuracy", *grades, f"pass@{n}", "rollouts + training, s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method, outcomes in methods.items():
        row = [
            f"`{method}`" if method != "start" else "start model",
            ", ".join(f"{rate:g}" for rate in outcomes[0].trial.rates),
            _spread([outcome.accuracy() for outcome in outcomes]),
            *(f"{mean(outcome.accuracy(grade) for outcome in outcomes):.2f}" for grade in grades),
            f"{mean(outcome.pass_at(n) for outcome in outcomes):.2f}",
            f"{mean(outcome.seconds for outcome in outcomes):.0f}" if method != "start" else "",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _differences_table(methods: dict[str, list[Outcome]]) -> list[str]:
    """HPT against every other method: the same seeds and questions, so the differences are paired."""
    hpt = {outcome.trial.seed: outcome for outcome in methods.get("hpt", [])}
    lines = ["| HPT against | difference in accuracy | seeds where HPT is ahead | p |", "|---|---|---|---|"]
    for method, outcomes in methods.items():
        pairs = [(hpt[outcome.trial.seed], outcome) for outcome in outcomes if outcome.trial.seed in hpt]
        if method in ("hpt", "start") or not pairs:
            continue
        changes = [ours.accuracy() - theirs.accuracy() for ours, theirs in pairs]
        questions = [
            mine.correct - other.correct
            for ours, theirs in pairs
            for mine, other in zip(ours.exam, theirs.exam, strict=True)
        ]
        ahead = sum(change > 0 for change in changes)
        lines.append(
            f"| `{method}` | {mean(changes):+.3f} | {ahead} of {len(changes)} | {permutation_test(questions):.2g} |"
        )
    return [
        *lines,
        "",
        "p: exact paired permutation test over the held-out questions of all seeds. It knows the chance that lies in "
        "the questions, not the chance that lies in training.",
    ]


def _gammas_table(gammas: dict[float, list[Outcome]]) -> list[str]:
    lines = ["| gamma | accuracy | questions sent to SFT | rollouts + training, s |", "|---|---|---|---|"]
    for gamma, outcomes in gammas.items():
        steps = [line for outcome in outcomes for line in outcome.metrics if "gate/sft" in line]
        share = sum(line["gate/sft"] for line in steps) / sum(line["gate/questions"] for line in steps)
        accuracy = _spread([outcome.accuracy() for outcome in outcomes])
        lines.append(f"| {gamma:g} | {accuracy} | {share:.0%} | {mean(outcome.seconds for outcome in outcomes):.0f} |")
    return lines


def _tuning_table(tuned: Sequence[Outcome]) -> list[str]:
    rates = sorted({outcome.trial.rates for outcome in tuned})
    lines = [f"| method | {' | '.join(f'{rate:g}' for (rate,) in rates)} |", "|---" * (len(rates) + 1) + "|"]
    for method in dict.fromkeys(outcome.trial.method for outcome in tuned):
        last = {o.trial.rates: o.metrics[-1]["eval/accuracy"] for o in tuned if o.trial.method == method}
        lines.append(f"| `{method}` | {' | '.join(f'{last[rate]:.3f}' for rate in rates)} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    """Mean over seeds (lowest to highest)."""
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
