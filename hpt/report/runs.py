"""Reads runs for a report, and groups those that differ only in their seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hpt.records.changes import in_words, read_changes
from hpt.records.files import CONFIG, EVALUATIONS, METRICS, ROLLOUTS, read_metrics, step_files
from hpt.report.conditions import Conditions, data_name, sampling_of, tell_apart
from hpt.report.curves import Curve, add_curves
from hpt.report.evaluations import Evaluation, QuestionCounts, keys_of, read_evaluations, read_question_counts
from hpt.support.errors import HptError

HELD_OUT = "held-out data"
"""Stands among the settings of a group for the questions it is evaluated on."""

# Settings that may differ inside a group: they say which repetition a run is and where its files are.
_IDENTITY = (
    "seed",
    "output",
    "model.path",
    "data.train",
    "data.eval",
    "device",
    "threads",
    "track",
    "checkpoint.push_to_hub",
)

_OUTSIDE_OF_STEPS = ("start", "eval", "checkpoint")  # phases; start: from the process's start to its first step


@dataclass(frozen=True)
class Run:
    """A run's settings and metrics, as read from its folder."""

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
        return self._path_in("model", "path")

    @property
    def data(self) -> str:
        return self._path_in("data", "train")

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def last_step(self) -> int:
        return self.metrics[-1]["step"]

    @property
    def total_steps(self) -> int | None:
        """The steps that the recipe asks for."""
        return self.config.get("steps")

    @property
    def finished(self) -> bool:
        return self.total_steps is None or self.last_step >= self.total_steps

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        return read_evaluations(self.metrics)

    @cached_property
    def question_counts(self) -> dict[int, tuple[QuestionCounts, ...]]:
        """The evaluations during training, question by question, by step."""
        return {step: read_question_counts(path) for step, path in step_files(self.folder, EVALUATIONS).items()}

    @cached_property
    def held_out(self) -> Conditions | None:
        """The conditions of the evaluations during training; None if there is none yet."""
        if not self.evaluations:
            return None
        settings = self.config.get("eval")
        settings = settings if isinstance(settings, dict) else {}
        last = list(self.question_counts.values())[-1:]
        n = min(question.n for question in last[0]) if last else settings.get("n", 1)
        questions = len(last[0]) if last else round(self.evaluations[-1].count / n)
        return Conditions(data_name(self._path_in("data", "eval")), questions, n, **sampling_of(settings))

    @cached_property
    def changes(self) -> list[str]:
        """A sentence for each time that the run was resumed with something changed."""
        return [
            f"Resumed after step {step} with changes: {in_words(each)}." for step, each in read_changes(self.folder)
        ]

    @cached_property
    def notes(self) -> list[str]:
        """What a reader of the run's numbers should know, a sentence each."""
        rollouts = step_files(self.folder, ROLLOUTS)
        steps = [line["step"] for line in self.metrics if line["step"] > 0]
        missing = [step for step in steps if step not in rollouts]
        if not rollouts or not missing:
            return self.changes
        return [
            *self.changes,
            f"The rollouts of {len(missing)} of {len(steps)} steps are missing, of step {missing[0]} first.",
        ]

    @cached_property
    def phases(self) -> dict[str, float]:
        """Seconds of the whole run by phase, the longest first."""
        totals: dict[str, float] = {}
        for record in self.metrics:
            for key, seconds in record.items():
                if key.startswith("time/") and key != "time/step" and seconds is not None:
                    phase = key.removeprefix("time/")
                    totals[phase] = totals.get(phase, 0.0) + seconds
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    @property
    def seconds(self) -> float:
        """Wall time of the run: `time/step` (or its phases, if absent) and the phases outside of steps."""
        total = 0.0
        for record in self.metrics:
            phases = {key: value or 0.0 for key, value in record.items() if key.startswith("time/")}
            outside = sum(phases.pop(f"time/{phase}", 0.0) for phase in _OUTSIDE_OF_STEPS)
            total += outside + (phases.get("time/step") or sum(phases.values()))
        return total

    def curve(self, numerator: str, denominator: str | None) -> Curve:
        """The ratio of two keys at the steps that have both (and no null); without a denominator, the key's value."""
        points = [
            (record["step"], record[numerator], record[denominator] if denominator else 1.0)
            for record in self.metrics
            if record.get(numerator) is not None and (not denominator or record.get(denominator) is not None)
        ]
        return Curve(
            np.array([step for step, _, _ in points], np.int64),
            np.array([above for _, above, _ in points], np.float64),
            np.array([below for _, _, below in points], np.float64),
        )

    def shares(self, keys: Sequence[str]) -> list[Curve]:
        """Each key's share of the keys' sum, at the steps that have any of them. An absent key counts 0."""
        records = [record for record in self.metrics if any(record.get(key) is not None for key in keys)]
        steps = np.array([record["step"] for record in records], np.int64)
        counts = np.array([[record.get(key) or 0 for record in records] for key in keys], np.float64)
        return [Curve(steps, row, counts.sum(axis=0)) for row in counts]

    def total(self, key: str) -> float:
        return sum(record[key] for record in self.metrics if record.get(key) is not None)

    def share(self, numerator: str, denominator: str) -> float | None:
        """The ratio of two keys' sums over the whole run; None if nothing was counted."""
        curve = self.curve(numerator, denominator)
        below = curve.denominators.sum()
        return float(curve.numerators.sum() / below) if below else None

    def _path_in(self, section: str, key: str) -> str:
        settings = self.config.get(section)
        unknown = f"unknown {section}"
        return str(settings.get(key, unknown)) if isinstance(settings, dict) else unknown


@dataclass(frozen=True)
class RunGroup:
    """Runs of one method that differ only in their seed.

    settings: by dotted key, those in which it differs from other groups of its method; the label states them.
    held_out: the conditions of its evaluations during training, the same in all its runs; None if there are none.
    """

    label: str
    runs: list[Run]
    settings: dict[str, Any] = field(default_factory=dict)
    held_out: Conditions | None = None

    @property
    def method(self) -> str:
        return self.runs[0].method

    def curve(self, numerator: str, denominator: str | None) -> Curve:
        """The runs' curves added up, at the steps that all of them have."""
        return add_curves([run.curve(numerator, denominator) for run in self.runs])

    def shares(self, keys: Sequence[str]) -> list[Curve]:
        """As `Run.shares`, of the runs' sums."""
        return [add_curves(list(curves)) for curves in zip(*(run.shares(keys) for run in self.runs), strict=True)]


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Reads runs, each once, and names them by the shortest end of their path that tells them apart.

    Raises HptError for a folder that is not a run (no config.yaml or metrics.jsonl), for one without steps, and for
    records that cannot be read.
    """
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    if not paths:
        raise HptError("no run given")
    return [_load_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """Groups runs by method and, within a method, by the settings and held-out questions in which its runs differ."""
    groups: list[RunGroup] = []
    held_out = _conditions_of_runs(runs)
    for method in dict.fromkeys(run.method for run in runs):
        same = [run for run in runs if run.method == method]
        evaluated = [held_out[run.name] for run in same if run.name in held_out]
        default = evaluated[0] if evaluated else None  # a run without an evaluation yet joins the others
        conditions = [held_out.get(run.name, default) for run in same]
        settings = [
            _settings(run.config) | {HELD_OUT: found and str(found)}
            for run, found in zip(same, conditions, strict=True)
        ]
        keys = sorted(set().union(*settings))
        varied = [key for key in keys if len({repr(setting.get(key)) for setting in settings}) > 1]
        by_label: dict[str, RunGroup] = {}
        for run, setting, found in zip(same, settings, conditions, strict=True):
            own = {key: setting.get(key) for key in varied}
            label = ", ".join([method, *(f"{key}={value}" for key, value in own.items())])
            by_label.setdefault(label, RunGroup(label, [], own, found)).runs.append(run)
        groups += by_label.values()
    return groups


def held_out_conditions(groups: Sequence[RunGroup]) -> list[Conditions]:
    """The different conditions under which the groups were evaluated during training."""
    return list(dict.fromkeys(group.held_out for group in groups if group.held_out))


def _conditions_of_runs(runs: Sequence[Run]) -> dict[str, Conditions]:
    """The conditions of the evaluated runs by name, told apart where their questions differ."""
    found = []
    for run in runs:
        if run.held_out:
            last = list(run.question_counts.values())[-1:]
            found.append((run.name, (run.held_out, repr(run.seed), keys_of(last[0]) if last else frozenset())))
    conditions = tell_apart([evaluation for _, evaluation in found])
    return dict(zip((name for name, _ in found), conditions, strict=True))


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
    if type(config.get("steps", 1)) is not int:
        raise HptError(f"{folder / CONFIG}: steps must be an integer, got {config['steps']!r}")
    return Run(folder, name, config, text, metrics)


def _names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths, all with the same number of parts, that are all different."""
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
