"""Results on stdout: readable on a terminal of 80 columns, whole when they are piped."""

from __future__ import annotations

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

WIDTH = 80


def plain_table(title: str, first: str, *others: str) -> Table:
    """A table of narrow columns; all but the first are right-aligned. Title and headers are literal text."""
    table = Table(title=escape(title), box=box.SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left")
    table.add_column(escape(first), overflow="fold")
    for header in others:
        table.add_column(escape(header), justify="right", overflow="fold")
    return table


def width_of(part: RenderableType) -> int:
    """Columns it takes where there is room enough."""
    console = Console(width=10_000)
    return Measurement.get(console, console.options, part).maximum


def print_results(*parts: RenderableType) -> None:
    """Prints to stdout; where that is no terminal nothing is wrapped, however narrow the pipe is said to be."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, *map(width_of, parts))
    for part in parts:
        console.print(part)
