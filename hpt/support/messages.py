"""A run's own messages: every module logs to its logger below `hpt`, and one handler prints them to stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import RenderableType
from rich.text import Text

from hpt.support.console import PlainConsole, visible

LOGGER = logging.getLogger("hpt")

console = PlainConsole(stderr=True)
"""Where messages and progress are shown; stdout is for results."""


class ConsoleHandler(logging.Handler):
    """Prints each message on one line, however long. A record with `shown`, a rich renderable, is printed as that."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            shown = getattr(record, "shown", None)
            if shown is not None:
                console.print(shown)
                return
            text = Text()
            if record.levelno >= logging.WARNING:
                text.append("warning: ", style="bold yellow")
            console.print(text.append(visible(record.getMessage())), soft_wrap=True)
        except Exception:
            self.handleError(record)


@contextmanager
def printing_messages(*, quiet: bool = False) -> Iterator[None]:
    """Prints the messages of hpt while it lasts, unless the program has given the logger `hpt` a handler of its own.

    quiet: errors only, for the ranks that do not speak for the run.
    """
    level, propagate = LOGGER.level, LOGGER.propagate
    handler = None if LOGGER.handlers else ConsoleHandler()
    if handler:
        LOGGER.addHandler(handler)
        LOGGER.propagate = False  # handlers of the root logger would print each message once more
    LOGGER.setLevel(logging.ERROR if quiet else logging.INFO)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
        if handler:
            LOGGER.removeHandler(handler)


def show(logger: logging.Logger, renderable: RenderableType) -> None:
    """Logs a table or a formatted text; handlers other than `ConsoleHandler` get it as plain text."""
    if logger.isEnabledFor(logging.INFO):
        plain = PlainConsole(width=console.width, no_color=True)
        with plain.capture() as capture:
            plain.print(renderable)
        logger.info(capture.get().rstrip(), extra={"shown": renderable})
