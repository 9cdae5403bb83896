"""The files that keep what the comparison measured. What they hold is not run again."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpt.support.errors import HptError
from hpt.support.files import make_folder, write_file_atomically

from .outcomes import Answered, Outcome, Trial
from .task import Pair

TRIALS, RATES, CONDITIONS = "trials.jsonl.gz", "rates.json", "conditions.txt"


@dataclass
class Records:
    """All that is known of a task, in a folder of three files.

    outcomes: finished trials. rates: the learning rates that tuning chose. tuning_seeds: the seeds that chose them.
    recipe: what was run, with changed settings. conditions: commit and machine of each time when trials were added.
    now: those of trials that are added from now on.
    """

    folder: Path
    recipe: str
    conditions: list[str]
    outcomes: dict[Trial, Outcome] = field(default_factory=dict)
    rates: dict[Pair, tuple[float, ...]] = field(default_factory=dict)
    tuning_seeds: set[int] = field(default_factory=set)
    now: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes[outcome.trial] = outcome
            if self.now and self.now not in self.conditions:
                self.conditions.append(self.now)
            self._write()

    def choose(self, rates: dict[Pair, tuple[float, ...]], seeds: Iterable[int]) -> None:
        """Record the rates that trials of these seeds chose."""
        with self._lock:
            self.rates |= rates
            self.tuning_seeds.update(seeds)
            self._write()

    def _write(self) -> None:
        make_folder(self.folder)
        trials = [asdict(self.outcomes[trial]) for trial in sorted(self.outcomes, key=lambda trial: trial.name)]
        chosen = [
            {"condition": condition, "method": method, "rates": rates}
            for (condition, method), rates in self.rates.items()
        ]
        write_file_atomically(self.folder / CONDITIONS, "\n".join([self.recipe, *self.conditions, ""]).encode())
        write_file_atomically(self.folder / RATES, _lines([{"tuning_seeds": sorted(self.tuning_seeds)}, *chosen]))
        write_file_atomically(self.folder / TRIALS, gzip.compress(_lines(trials), mtime=0))


def read_records(folder: Path) -> Records:
    """What `Records` wrote. HptError where a file is missing or damaged."""
    try:
        return _read(folder)
    except (OSError, EOFError, zlib.error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise HptError(f"{folder}: its records are not whole ({type(error).__name__}: {error})") from error


def _read(folder: Path) -> Records:
    recipe, *conditions = (folder / CONDITIONS).read_text().splitlines()
    tuning, *chosen = _parsed((folder / RATES).read_bytes())
    records = Records(folder, recipe, conditions, tuning_seeds=set(tuning["tuning_seeds"]))
    for line in chosen:
        records.rates[line["condition"], line["method"]] = tuple(line["rates"])
    for line in _parsed(gzip.decompress((folder / TRIALS).read_bytes())):
        trial = Trial(**line["trial"] | {"rates": tuple(line["trial"]["rates"])})
        evaluation = [Answered(**answered) for answered in line["evaluation"]]
        records.outcomes[trial] = Outcome(trial, line["metrics"], evaluation)
    return records


def _lines(values: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _parsed(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines()]
