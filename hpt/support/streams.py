"""Standard output and standard error that can no longer be written: a closed terminal or pipe, a full disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Literal


@contextmanager
def dropping_unwritable(*names: Literal["stdout", "stderr"]) -> Iterator[None]:
    """While it lasts, what cannot be written to these streams is dropped: a run does not end for want of a reader."""
    streams = {name: getattr(sys, name) for name in names}
    for name, stream in streams.items():
        if stream is not None:  # it was closed when the process started
            setattr(sys, name, _Dropping(stream))
    try:
        yield
    finally:
        for name, stream in streams.items():
            setattr(sys, name, stream)


def discard(stream: IO[str]) -> None:
    """Send what is, and will be, written to `stream` nowhere. Without it, Python fails to write the rest at its end."""
    with suppress(OSError, ValueError):  # it has no file descriptor, as in a notebook
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Dropping:
    """A text stream whose writes do not fail."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
