"""What the arguments of several commands share: the parser, and types that check a value and say what is allowed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


class CommandParser(argparse.ArgumentParser):
    """The parser of one command. Line breaks of its description and epilog are kept.

    make_epilog: makes the epilog when help is printed, for one that takes long to make.
    """

    make_epilog: Callable[[], str] | None

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.make_epilog = None

    def format_help(self) -> str:
        if self.make_epilog:
            self.epilog = self.make_epilog()
        return super().format_help()


def _number(kind: type[Number], allowed: str, is_allowed: Callable[[Number], bool]) -> Callable[[str], Number]:
    """A type for argparse. allowed: the allowed values in words, for the error message."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not is_allowed(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}")
        return value

    return parse


non_negative_int = _number(int, "a whole number >= 0", lambda value: value >= 0)
positive_int = _number(int, "a whole number >= 1", lambda value: value >= 1)
non_negative_float = _number(float, "a number >= 0", lambda value: 0 <= value < math.inf)
port = _number(int, "a port from 1 to 65535", lambda value: 1 <= value <= 65535)
share = _number(float, "a number above 0 and at most 1", lambda value: 0 < value <= 1)


def positive_ints(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    try:
        return [positive_int(part) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be whole numbers >= 1, separated by commas, got {text!r}") from None
