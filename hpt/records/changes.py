"""What had changed each time that a run was resumed with something changed, as `changes.jsonl` has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpt.records.files import CHANGES, read_jsonl_if_any
from hpt.support.errors import HptError


@dataclass(frozen=True)
class Change:
    """Something that is another than before; None: it was or is not there."""

    what: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.what} (was {_shown(self.before)}, is {_shown(self.now)})"


def read_changes(run: Path) -> list[tuple[int, list[Change]]]:
    """The changes with which a run was resumed, and after which step; in the order of resumes.

    HptError where the file has anything else.
    """
    path = run / CHANGES
    lines = read_jsonl_if_any(path)
    try:
        return [(line["step"], [Change(**change) for change in line["changes"]]) for line in lines]
    except (KeyError, TypeError) as error:
        raise HptError(f"{path}: a record must have a list `changes` of {{what, before, now}} ({error})") from error


def in_words(changes: Sequence[Change]) -> str:
    return "; ".join(map(str, changes))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
