"""Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) during a run."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from hpt.support.distributed import World
from hpt.support.stopping import ending_signals, stop_asked

logger = logging.getLogger(__name__)


class StopSignals:
    """While it is open, the first signal stops the run after the current step, with a checkpoint.

    Before the first step there is nothing to save: a signal then stops at once, as a second one does. With several
    processes no signal stops at once, since the launcher repeats each. Outside of the main thread Python hands over no
    signals.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.training = False  # whether steps are being done
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *ending_signals()):
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        stop_asked.clear()

    def received(self) -> bool:
        """Whether any rank was told to stop; a collective."""
        return any(self.world.gather(stop_asked.is_set()))

    def _note(self, number: int, frame: FrameType | None) -> None:
        alone = self.world.size == 1
        if alone and (stop_asked.is_set() or not self.training):
            raise KeyboardInterrupt
        stop_asked.set()
        once_more = " (once more to stop at once)" if alone else ""
        logger.info(f"Stopping after this step, with a checkpoint{once_more} ...")
