"""Shows how far a long task is: a bar on a terminal, an updated line in a notebook, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from hpt.support.console import visible
from hpt.support.messages import console

SECONDS_BETWEEN_LINES = 60.0
"""A log gets a line for each tenth of a task, and at least one in this time."""


class Progress:
    """The progress of one task. A context manager.

    name: what the task counts, as in "step". total: how many there are. done: how many were done before.
    """

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        self.name = name
        self.total = total
        self.done = self.done_at_start = done
        self.text = ""
        self._display: _Display = _Plain()
        if console.is_jupyter:
            self._display = _Notebook()
        elif console.is_terminal:
            self._display = _Terminal(name, total, done)

    def update(self, done: int, text: str = "") -> None:
        """done: how many are done by now. text: numbers to show beside it."""
        self.done, self.text = done, visible(text)
        self._display.show(self)

    @property
    def line(self) -> str:
        """As in "step 3/10  reward 0.5"."""
        return f"{self.name} {self.done}/{self.total}  {self.text}".rstrip()

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._display.open(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.close()

    @property
    def time_left(self) -> str:
        """As in "1:05 left": from the average speed so far; "" before the first update and after the last."""
        advanced = self.done - self.done_at_start
        if advanced <= 0 or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self._start) / advanced * (self.total - self.done)
        return f"{clock(seconds)} left"


def clock(seconds: float) -> str:
    """As in 4:05, or 1:02:03 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Display:
    """One way to show progress."""

    def open(self, progress: Progress) -> None: ...

    def show(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


class _Terminal(_Display):
    """A bar, and below it the numbers."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.bars = _BarsWithText(
            TextColumn(name),
            MofNCompleteColumn(),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bars.add_task(name, total=total, completed=done)

    def open(self, progress: Progress) -> None:
        self.bars.start()

    def show(self, progress: Progress) -> None:
        self.bars.text = progress.text
        self.bars.update(self.task, completed=progress.done)

    def close(self) -> None:
        self.bars.stop()


class _BarsWithText(Bars):
    text = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.text:
            yield Text(self.text)


class _Notebook(_Display):
    """A line in the output of the cell. It needs IPython alone, no widgets."""

    handle: Any = None

    def open(self, progress: Progress) -> None:
        from IPython.display import display

        self.handle = display(self._shown(progress), display_id=True)

    def show(self, progress: Progress) -> None:
        self.handle.update(self._shown(progress))

    @staticmethod
    def _shown(progress: Progress) -> Any:
        from IPython.display import Pretty

        filled = round(20 * progress.done / max(1, progress.total))
        bar = "█" * filled + "░" * (20 - filled)
        return Pretty(f"{bar} {progress.line}  {progress.time_left}".rstrip())


class _Plain(_Display):
    """Lines in a log."""

    def __init__(self) -> None:
        self.shown_at = time.monotonic()
        self.tenth = 0

    def open(self, progress: Progress) -> None:
        self.tenth = 10 * progress.done // max(1, progress.total)

    def show(self, progress: Progress) -> None:
        now, tenth = time.monotonic(), 10 * progress.done // max(1, progress.total)
        if tenth > self.tenth or progress.done == progress.total or now - self.shown_at >= SECONDS_BETWEEN_LINES:
            self.shown_at, self.tenth = now, tenth
            console.print("  ".join(part for part in (progress.line, progress.time_left) if part), soft_wrap=True)
