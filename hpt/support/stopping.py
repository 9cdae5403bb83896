"""Being asked to stop: by a signal during an evaluation, and whether a run was asked to stop after its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

stop_asked = threading.Event()
"""Set where a run is to stop after the step that it is in: what waits for something gives up."""


def ending_signals() -> list[signal.Signals]:
    """Those besides Ctrl-C that end a process in order: SIGTERM, and SIGHUP where it is not ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """While it lasts, SIGTERM and SIGHUP do what Ctrl-C does, so that what was started is also ended.

    Outside of the main thread Python hands over no signals, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a child that was forked and has no handler of its own
            os._exit(128 + number)
        raise KeyboardInterrupt

    earlier = {number: signal.signal(number, interrupt) for number in ending_signals()}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
