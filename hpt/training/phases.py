"""The phases of a step: how long each took, and what an out-of-memory error in it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from hpt.config.schema import Config
from hpt.memory.out_of_memory import Phase, memory_phase


class PhaseClock:
    """Seconds spent in each phase of the current step, by the clock `now`."""

    now = staticmethod(time.perf_counter)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.restart()

    def restart(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = self.now()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        began = self.now()
        with memory_phase(name, self.config):
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - began

    def stop(self) -> dict[str, float]:
        """The phases' seconds and, as "step", those since `restart`."""
        return self.seconds | {"step": self.now() - self._began}
