"""The files that keep what the comparison measured. What they hold is not run again."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpt.support.errors import HptError
from hpt.support.files import write_file_atomically

from .outcomes import Answered, Outcome, Trial
from .task import Pair

METRICS, EVALUATIONS, RATES, CONDITIONS = "metrics.jsonl.gz", "exams.jsonl.gz", "rates.json", "conditions.txt"


@dataclass
class Records:
    """All that is known of a task, in a folder of four files.

    outcomes: finished trials. rates: the learning rates that tuning chose. recipe: what was run, with changed settings.
    conditions: commit and machine of each time when trials were added.
    """

    folder: Path
    recipe: str
    conditions: list[str]
    outcomes: dict[Trial, Outcome] = field(default_factory=dict)
    rates: dict[Pair, tuple[float, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[outcome.trial] = outcome
            self._write()

    def choose(self, rates: dict[Pair, tuple[float, ...]]) -> None:
        with self._lock:
            self.rates |= rates
            self._write()

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        metrics, evaluations = [], []
        for trial in sorted(self.outcomes, key=lambda trial: trial.name):
            outcome = self.outcomes[trial]
            metrics += [{"trial": asdict(trial), **line} for line in outcome.metrics]
            evaluations += [{"trial": asdict(trial), **asdict(answer)} for answer in outcome.evaluation]
        rates = [
            {"condition": condition, "method": method, "rates": list(rates)}
            for (condition, method), rates in self.rates.items()
        ]
        write_file_atomically(self.folder / CONDITIONS, "\n".join([self.recipe, *self.conditions, ""]).encode())
        write_file_atomically(self.folder / RATES, _lines(rates))
        write_file_atomically(self.folder / METRICS, gzip.compress(_lines(metrics), mtime=0))
        write_file_atomically(self.folder / EVALUATIONS, gzip.compress(_lines(evaluations), mtime=0))


def read_records(folder: Path) -> Records:
    """What `Records` wrote. HptError where a file is missing or damaged."""
    try:
        return _read(folder)
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise HptError(f"{folder}: its records are not whole ({type(error).__name__}: {error})") from error


def _read(folder: Path) -> Records:
    recipe, *conditions = (folder / CONDITIONS).read_text().splitlines()
    records = Records(folder, recipe, conditions)
    for line in _parsed((folder / RATES).read_bytes()):
        records.rates[line["condition"], line["method"]] = tuple(line["rates"])
    for line in _parsed(gzip.decompress((folder / METRICS).read_bytes())):
        _outcome(records, line).metrics.append(line)
    for line in _parsed(gzip.decompress((folder / EVALUATIONS).read_bytes())):
        _outcome(records, line).evaluation.append(Answered(**line))
    return records


def _outcome(records: Records, line: dict[str, Any]) -> Outcome:
    """The outcome that a line belongs to. Takes the trial out of the line."""
    parts = line.pop("trial")
    trial = Trial(**parts | {"rates": tuple(parts["rates"])})
    return records.outcomes.setdefault(trial, Outcome(trial, [], []))


def _lines(values: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _parsed(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines()]
