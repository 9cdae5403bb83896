"""Records a run on rank 0: files in its folder, trackers, and the progress on the terminal."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hpt.config.schema import Config
from hpt.method.experience import Experience
from hpt.records.files import CONFIG, RunRecords
from hpt.records.progress import StepNumbers
from hpt.records.samples import sample_rollouts
from hpt.records.trackers import Tracker, open_trackers
from hpt.support.distributed import World
from hpt.support.errors import ConfigError, HptError
from hpt.support.files import write_file_atomically
from hpt.support.progress import Progress


class Journal:
    """While it is open, rank 0 records the run and keeps other processes out of its folder; other ranks do nothing.

    Opening it is a collective: every rank must do it. resume_step: the step of the checkpoint that the run is resumed
    from, None for a new run.
    """

    def __init__(self, config: Config, resume_step: int | None, world: World) -> None:
        self.config = config
        self.folder = Path(config.output)
        self.resume_step = resume_step
        self.world = world
        self.numbers = StepNumbers()
        self.stack = ExitStack()
        self.trackers: list[Tracker] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.world.once(lambda: self._open(stack))
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def _open(self, stack: ExitStack) -> None:
        stack.enter_context(_locked(self.folder))
        self.records = RunRecords(self.folder)
        settings = self.config.model_dump(mode="json")
        self.trackers = open_trackers(self.config.track, self.folder, settings, resume_step=self.resume_step)
        for tracker in self.trackers:
            stack.callback(tracker.close)
        self.progress = stack.enter_context(Progress("step", self.config.steps, self.resume_step or 0))

    def begin(self) -> None:
        """Writes the recipe and drops the records after `resume_step`.

        Call it after every check has passed: a run that cannot start must leave its folder unchanged.
        """
        if self.world.main:
            write_file_atomically(self.folder / CONFIG, self.config.to_yaml().encode())
            self.records.truncate_after(-1 if self.resume_step is None else self.resume_step)

    def log(self, metrics: dict[str, float]) -> None:
        """Records the metrics of one step, `step` among them."""
        if self.world.main:
            self.records.log(metrics)
            self.progress.update(int(metrics["step"]), self.numbers.text(metrics))
            for tracker in self.trackers:
                tracker.log(int(metrics["step"]), metrics)

    def amend(self, step: int, metrics: dict[str, float]) -> None:
        """Adds to the metrics of the last step what was known only after they were logged."""
        if self.world.main:
            self.records.amend(step, metrics)
            for tracker in self.trackers:
                tracker.log(step, metrics)

    def log_rollouts(self, step: int, rollouts: Sequence[dict[str, Any]]) -> None:
        if self.world.main:
            self.records.log_rollouts(step, rollouts)

    def log_samples(self, step: int, experiences: Sequence[Experience]) -> None:
        """Sends trackers a table of a few rollouts, every `track.every` steps."""
        every = self.config.track.every
        if not (self.world.main and self.trackers and every and step % every == 0):
            return
        if samples := sample_rollouts(step, experiences):
            for tracker in self.trackers:
                tracker.log_samples(step, samples)

    def log_evaluation(self, step: int, questions: Sequence[dict[str, Any]]) -> None:
        if self.world.main:
            self.records.log_evaluation(step, questions)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks the run's folder for this process. The lock ends with the process, even when it is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"output = {str(folder)!r}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HptError(f"output = {str(folder)!r}: another process is training in this folder") from None
        yield
