"""Prints results to stdout: tables for a terminal of 80 columns, never wrapped in a pipe."""

from __future__ import annotations

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

WIDTH = 80


def plain_table(title: str, first: str, *others: str) -> Table:
    """A table with narrow columns, all but the first right-aligned. Title and headers are not read as markup."""
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left")
    table.add_column(escape(first), overflow="fold")
    for header in others:
        table.add_column(escape(header), justify="right", overflow="fold")
    return table


def width_of(part: RenderableType) -> int:
    """Its width in columns when nothing is wrapped."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, part).maximum


def print_results(*parts: RenderableType) -> None:
    """Prints to stdout. Where that is not a terminal nothing is wrapped, whatever width $COLUMNS says."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max([console.width, *map(width_of, parts)])
    for part in parts:
        console.print(part)
