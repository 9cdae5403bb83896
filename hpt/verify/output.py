"""What functions in worker processes print: shown among the run's messages, up to a limit."""

from __future__ import annotations

import codecs
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rich.text import Text

from hpt.support.console import visible
from hpt.support.messages import console

LIMIT = 1 << 20
"""Bytes that are shown of what the functions of a pool print."""
_CLOSE_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Allowance:
    """The bytes of output that are still shown. A pool has one, whatever its processes and their successors print."""

    def __init__(self) -> None:
        self.left = LIMIT
        self.lock = threading.Lock()

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """The part of the data that may be shown, and whether it has used up what was left."""
        with self.lock:
            shown = data[: self.left]
            self.left -= len(shown)
            return shown, bool(shown) and not self.left


class PrintedOutput:
    """A pipe for the standard output and error of a fork server's processes. A thread shows what comes, line by line.

    What exceeds the allowance is read and dropped, so that no function waits or fails because of it.

    field: the setting that names the functions, for the sentence that says so.
    """

    def __init__(self, field: str, allowance: Allowance) -> None:
        self._field = field
        self._allowance = allowance
        self._reading, self._writing = os.pipe()
        self._closing = False
        self._thread = threading.Thread(target=self._show, name="printed by functions", daemon=True)
        self._thread.start()

    @contextmanager
    def end_for_processes(self) -> Iterator[int]:
        """The descriptor to start the processes with. It is closed here afterwards, so that the pipe ends with them."""
        try:
            yield self._writing
        finally:
            os.close(self._writing)

    def close(self) -> None:
        """To be called when the processes have ended; shows what they had printed by then."""
        self._closing = True
        self._thread.join(_CLOSE_SECONDS)  # a process that got away from the pool may still hold the pipe

    def _show(self) -> None:
        line = ""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with os.fdopen(self._reading, "rb", buffering=0) as pipe:
            while (data := pipe.read(1 << 16)) and not (self._closing and not self._allowance.left):
                shown, used_up = self._allowance.take(data)
                *lines, line = (line + decoder.decode(shown)).split("\n")
                for each in lines:
                    _print(each)
                if used_up:
                    _print(line)
                    line = ""
                    logger.warning(
                        f"{self._field}: functions have printed {LIMIT:,} bytes; what they print from now on is dropped"
                    )
        if line:
            _print(line)


def _print(line: str) -> None:
    console.print(Text(visible(line)), soft_wrap=True)
