"""Prints results to stdout: tables for a terminal of 80 columns, never wrapped in a pipe."""

from __future__ import annotations

import sys

from rich import box
from rich.console import RenderableType
from rich.measure import Measurement
from rich.table import Table

from hpt.support.console import PlainConsole
from hpt.support.errors import HptError
from hpt.support.streams import discard

WIDTH = 80


def plain_table(title: str, first: str, *others: str) -> Table:
    """A table with narrow columns, all but the first right-aligned."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left")
    table.add_column(first, overflow="fold")
    for header in others:
        table.add_column(header, justify="right", overflow="fold")
    return table


def width_of(part: RenderableType) -> int:
    """Its width in columns when nothing is wrapped."""
    console = PlainConsole(width=10_000)
    return Measurement.get(console, console.options, part).maximum


def as_text(*parts: RenderableType) -> str:
    """The parts as plain text, one below the other, nothing wrapped."""
    console = PlainConsole(width=max(WIDTH, *map(width_of, parts)), no_color=True)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def print_results(*parts: RenderableType) -> None:
    """Prints to stdout. Where that is not a terminal nothing is wrapped, whatever width $COLUMNS says.

    HptError where it cannot be written. Where its reader has seen enough, as `head` has, the rest is dropped.
    """
    console = PlainConsole()
    if not console.is_terminal:
        console.width = max([console.width, *map(width_of, parts)])
    try:
        for part in parts:
            console.print(part)
    except OSError as error:
        discard(sys.stdout)
        raise HptError(f"the results cannot be written to standard output: {error.strerror}") from error
