"""What a fault is here: something that is done to a run, and what must hold afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class Broken(Exception):
    """What had to hold did not; the message says what was seen."""


class Impossible(Exception):
    """This machine or user cannot have the fault, such as a full disk where nothing may be mounted."""


@dataclass(frozen=True)
class Place:
    """What a case works with.

    folder: empty, its own. recipe: of the tiny world. reference: a finished run by that recipe which nothing disturbed.
    """

    folder: Path
    recipe: Path
    reference: Path
    random: random.Random


@dataclass(frozen=True)
class Case:
    """check: puts the fault in and returns what was seen in a few words; Broken where something did not hold."""

    family: str
    name: str
    holds: str
    check: Callable[[Place], str]

    @property
    def title(self) -> str:
        return f"{self.family}: {self.name}"


@dataclass(frozen=True)
class Result:
    """How a case ended. outcome: "held", "BROKEN" or "not possible here"."""

    family: str
    name: str
    holds: str
    outcome: str
    seen: str
    seconds: float


def expect(condition: object, seen: str) -> None:
    """Broken, with what was seen instead, unless the condition is true."""
    if not condition:
        raise Broken(seen)
