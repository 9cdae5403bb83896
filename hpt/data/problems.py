"""Collect what is wrong with a data source and report it in one error."""

from __future__ import annotations

import reprlib
from typing import Any

from hpt.support.errors import DataError

PROBLEMS_SHOWN = 5

_short_repr = reprlib.Repr()
_short_repr.maxstring = _short_repr.maxother = 60
_short_repr.maxdict = _short_repr.maxlist = _short_repr.maxlevel = 3


def describe(value: Any) -> str:
    """A value of a data file, shortened for an error message."""
    return "null" if value is None else _short_repr.repr(value)


def first_few(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    more = len(lines) - PROBLEMS_SHOWN
    return [*lines[:PROBLEMS_SHOWN], f"and {more} more"] if more > 0 else lines


class Problems:
    """What is wrong with a source.

    source: its file or dataset name. unit: what its records are counted in, "line" or "record".
    """

    def __init__(self, source: str, unit: str) -> None:
        self.source = source
        self.unit = unit
        self.found: list[tuple[int, str]] = []

    def add(self, number: int, text: str) -> None:
        """Note what is wrong with record `number`."""
        self.found.append((number, text))

    def raise_if_any(self) -> None:
        """Raise DataError with the first few problems and the number of the others."""
        if not self.found:
            return
        self.found.sort(key=lambda problem: problem[0])
        if len(self.found) == 1:
            number, text = self.found[0]
            raise DataError(f"{self.source}, {self.unit} {number}: {text}")
        lines = first_few([f"{self.unit} {number}: {text}" for number, text in self.found])
        raise DataError("\n  ".join([f"{self.source} has {len(self.found)} problems:", *lines]))
