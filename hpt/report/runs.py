"""Reading runs for a report: their numbers as exact ratios, their held-out accuracy, their groups."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hpt.evaluation.evaluate import read_results
from hpt.records.files import CONFIG, EVALUATIONS, METRICS, read_metrics, step_files
from hpt.support.errors import HptError

# Settings that may differ inside a group: they say which repetition a run is and where its files lie, not what it does.
_IDENTITY = ("seed", "output", "model.path", "data.train", "data.eval", "device", "threads", "track")


@dataclass(frozen=True)
class Evaluation:
    """One pass over the held-out questions: right answers and answers, overall and by grade."""

    step: int
    correct: float
    count: int
    grades: dict[str, tuple[float, int]]

    @property
    def accuracy(self) -> float:
        return self.correct / self.count

    def of_grade(self, grade: str) -> float | None:
        correct, count = self.grades.get(grade, (0.0, 0))
        return correct / count if count else None


@dataclass(frozen=True)
class Answered:
    """One question in one evaluation: `correct` of `n` responses right. key: tells it from every other question."""

    key: str
    grade: str | None
    n: int
    correct: int


@dataclass(frozen=True)
class Curve:
    """A quotient of sums along the steps: `numerators[i] / denominators[i]` is its value at `steps[i]`."""

    steps: np.ndarray  # (n,) int64, ascending
    numerators: np.ndarray  # (n,) float64
    denominators: np.ndarray  # (n,) float64

    def values(self, window: int = 1) -> np.ndarray:
        """(n,) float64: the quotient of the sums over the `window` (odd) entries around each, fewer at the ends.

        NaN where the denominators sum to 0.
        """
        reach = window // 2
        around = [slice(max(i - reach, 0), i + reach + 1) for i in range(len(self.steps))]
        numerator = np.array([self.numerators[part].sum() for part in around])
        denominator = np.array([self.denominators[part].sum() for part in around])
        return np.divide(numerator, denominator, out=np.full(len(around), np.nan), where=denominator != 0)

    @property
    def window(self) -> int:
        """How many entries the smoothed line sums over: about a twelfth of the run, odd, 25 at most."""
        return min(25, len(self.steps) // 12) | 1


@dataclass(frozen=True)
class Run:
    folder: Path
    name: str
    config: dict[str, Any]
    config_text: str
    metrics: list[dict[str, Any]]

    @property
    def method(self) -> str:
        return Path(str(self.config.get("method", "unknown"))).stem

    @property
    def model(self) -> str:
        section = self.config.get("model")
        return str(section.get("path", "unknown model") if isinstance(section, dict) else "unknown model")

    @property
    def data(self) -> str:
        section = self.config.get("data")
        return str(section.get("train", "unknown data") if isinstance(section, dict) else "unknown data")

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def last_step(self) -> int:
        return self.metrics[-1]["step"]

    @property
    def planned_steps(self) -> int | None:
        return self.config.get("steps")

    @property
    def finished(self) -> bool:
        return self.planned_steps is None or self.last_step >= self.planned_steps

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        return read_evaluations(self.metrics)

    @cached_property
    def answered(self) -> dict[int, tuple[Answered, ...]]:
        """The evaluations of the training question by question, by step."""
        return {step: read_answered(path) for step, path in step_files(self.folder, EVALUATIONS).items()}

    @cached_property
    def phases(self) -> dict[str, float]:
        """Seconds of the whole run by phase, largest first."""
        totals: dict[str, float] = {}
        for record in self.metrics:
            for key, seconds in record.items():
                if key.startswith("time/") and key != "time/step" and seconds is not None:
                    totals[key[5:]] = totals.get(key[5:], 0.0) + seconds
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    @property
    def seconds(self) -> float:
        """Wall time of all steps: `time/step` (or its phases, where absent) and the phases outside of it."""
        total = 0.0
        for record in self.metrics:
            phases = {key: value or 0.0 for key, value in record.items() if key.startswith("time/")}
            outside = phases.pop("time/eval", 0.0) + phases.pop("time/checkpoint", 0.0)
            total += outside + (phases.get("time/step") or sum(phases.values()))
        return total

    def curve(self, numerator: str, denominator: str | None) -> Curve:
        """The steps that have both keys (and no null); without a denominator each step counts once."""
        points = [
            (record["step"], record[numerator], record[denominator] if denominator else 1.0)
            for record in self.metrics
            if record.get(numerator) is not None and (not denominator or record.get(denominator) is not None)
        ]
        steps, above, below = zip(*points, strict=True) if points else ((), (), ())
        return Curve(np.array(steps, np.int64), np.array(above, np.float64), np.array(below, np.float64))

    def shares(self, keys: Sequence[str]) -> list[Curve]:
        """Each key's share of the keys' sum, at the steps that have any of them (an absent one counts 0)."""
        records = [record for record in self.metrics if any(record.get(key) is not None for key in keys)]
        steps = np.array([record["step"] for record in records], np.int64)
        counts = np.array([[record.get(key) or 0 for record in records] for key in keys], np.float64)
        return [Curve(steps, row, counts.sum(axis=0)) for row in counts]

    def total(self, key: str) -> float:
        return sum(record[key] for record in self.metrics if record.get(key) is not None)

    def share(self, numerator: str, denominator: str) -> float | None:
        """Quotient of the sums over the whole run; None where nothing was counted."""
        curve = self.curve(numerator, denominator)
        below = curve.denominators.sum()
        return float(curve.numerators.sum() / below) if below else None


@dataclass(frozen=True)
class Group:
    """Runs of one method that differ in nothing but their seed.

    settings: those by dotted key that tell it from other groups of its method; the label states them.
    """

    label: str
    runs: list[Run]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.runs[0].method

    def curve(self, numerator: str, denominator: str | None) -> Curve:
        """The runs' sums added up, at the steps that all of them have."""
        return _add([run.curve(numerator, denominator) for run in self.runs])

    def shares(self, keys: Sequence[str]) -> list[Curve]:
        """As `Run.shares`, of the runs' sums."""
        return [_add(list(curves)) for curves in zip(*(run.shares(keys) for run in self.runs), strict=True)]


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read runs, each once, named by the part of their path that tells them apart.

    Raises HptError for a folder that is not a run (no config.yaml or metrics.jsonl), has no steps yet, or holds
    records that can't be read.
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    if not paths:
        raise HptError("no run given")
    return [_load_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by method; those of one method whose other settings differ are told apart by these settings."""
    groups: list[Group] = []
    for method in dict.fromkeys(run.method for run in runs):
        same = [run for run in runs if run.method == method]
        settings = [_settings(run.config) for run in same]
        keys = sorted(set().union(*settings))
        varied = [key for key in keys if len({repr(setting.get(key)) for setting in settings}) > 1]
        by_label: dict[str, Group] = {}
        for run, setting in zip(same, settings, strict=True):
            own = {key: setting.get(key) for key in varied}
            label = ", ".join([method, *(f"{key}={value}" for key, value in own.items())])
            by_label.setdefault(label, Group(label, [], own)).runs.append(run)
        groups += by_label.values()
    return groups


def read_evaluations(metrics: Sequence[dict[str, Any]]) -> list[Evaluation]:
    """Every evaluation among a run's metrics, in the order of steps."""
    found = []
    for record in metrics:
        if not record.get("eval/count"):
            continue
        grades = {
            key.removeprefix("eval/correct/"): (value, record.get(key.replace("correct", "count", 1), 0))
            for key, value in record.items()
            if key.startswith("eval/correct/")
        }
        ordered = dict(sorted(grades.items(), key=lambda item: natural_key(item[0])))
        found.append(Evaluation(record["step"], record["eval/correct"], record["eval/count"], ordered))
    return found


def read_answered(path: Path) -> tuple[Answered, ...]:
    """An evaluation's file of results."""
    return tuple(
        Answered(json.dumps([record["prompt"], record["answer"]]), record["grade"], record["n"], record["correct"])
        for record in read_results(path).values()
    )


def natural_key(text: str) -> list[tuple[bool, int, str]]:
    """Sorts "2 digits" before "10 digits"."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", text)]


def _add(curves: list[Curve]) -> Curve:
    curves = [curve for curve in curves if len(curve.steps)] or curves[:1]
    common = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
    kept = [np.isin(curve.steps, common) for curve in curves]
    return Curve(
        np.array(common, np.int64),
        np.sum([curve.numerators[keep] for curve, keep in zip(curves, kept, strict=True)], axis=0),
        np.sum([curve.denominators[keep] for curve, keep in zip(curves, kept, strict=True)], axis=0),
    )


def _load_run(folder: Path, name: str) -> Run:
    for needed in (CONFIG, METRICS):
        if not (folder / needed).is_file():
            raise HptError(f"{folder} is not a run: it has no {needed}")
    metrics = read_metrics(folder)
    if not metrics:
        raise HptError(f"{folder / METRICS} has no steps yet")
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HptError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise HptError(f"{folder / CONFIG}: expected a mapping of settings, got {type(config).__name__}")
    return Run(folder, name, config, text, metrics)


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths, all of one length, that are all different."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's settings by dotted key, without those of `_IDENTITY`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in _IDENTITY:
            continue
        flat |= _settings(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat
