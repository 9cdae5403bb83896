"""Being asked to stop: by SIGTERM during an evaluation, and whether a run was asked to stop after its step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

stop_asked = threading.Event()
"""Set where a run is to stop after the step that it is in: what waits for something gives up."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While it lasts, SIGTERM does what Ctrl-C does, so that what was started is also ended.

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

    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
