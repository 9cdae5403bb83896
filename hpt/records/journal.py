"""Records a run on rank 0: files in its folder, trackers, and the progress on the terminal."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hpt.config.schema import Config
from hpt.config.stages import check_begun_stages
from hpt.method.experience import Experience
from hpt.records.changes import Change, in_words
from hpt.records.checkpoints import step_of
from hpt.records.files import CHANGES, CONFIG, METRICS, RunRecords
from hpt.records.fingerprints import Fingerprints, changes_since, fingerprints_of
from hpt.records.progress import StepNumbers
from hpt.records.samples import sample_rollouts
from hpt.records.trackers import Tracker, open_trackers
from hpt.support.distributed import World
from hpt.support.errors import ConfigError, HptError
from hpt.support.files import remove_partial_file, write_file_atomically
from hpt.support.progress import Progress

logger = logging.getLogger(__name__)


class Journal:
    """While it is open, rank 0 records the run and keeps other processes out of its folder; other ranks do nothing.

    Opening it is a collective: every rank must do it. checkpoint: the one that the run is resumed from, None for a new
    run. accept_changes: a run is resumed although what it depends on has changed. lost: what it had, where it starts
    again.
    """

    def __init__(
        self,
        config: Config,
        checkpoint: Path | None,
        world: World,
        *,
        accept_changes: bool = False,
        lost: Sequence[Change] = (),
    ) -> None:
        self.config = config
        self.folder = Path(config.output)
        self.checkpoint = checkpoint
        self.resume_step = step_of(checkpoint) if checkpoint else None
        self.world = world
        self.accept_changes = accept_changes
        self.changes = list(lost)
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
        for name in (CONFIG, METRICS, CHANGES):  # and no other: a report may be writing its own
            remove_partial_file(self.folder / name)
        self.records = RunRecords(self.folder)
        settings = self.config.model_dump(mode="json")
        self.trackers = open_trackers(self.config.track, self.folder, settings, resume_step=self.resume_step)
        for tracker in self.trackers:
            stack.callback(tracker.close)
        self.progress = stack.enter_context(Progress("step", self.config.steps, self.resume_step or 0))

    def take_fingerprints(self, data: Mapping[str, str], *, resumed: bool) -> None:
        """Takes the fingerprints for the checkpoints to come. data: those of its sources by name.

        resumed: the run goes on from a checkpoint that was there when it began. Then HptError, on every rank, names
        what has changed since and was not asked for, unless `accept_changes`.
        """
        self.world.once(lambda: self._take_fingerprints(data, resumed))

    def _take_fingerprints(self, data: Mapping[str, str], resumed: bool) -> None:
        self.fingerprints = fingerprints_of(self.config, data)
        if not resumed or self.checkpoint is None or self.resume_step is None:
            return
        saved = Fingerprints.read(self.checkpoint)
        if saved is None:
            return
        if before := saved.config():
            check_begun_stages(before, self.config, self.resume_step)
        now = self.fingerprints.with_metrics(self.folder, self.resume_step)
        self.changes, unasked = changes_since(saved, self.folder, self.resume_step, now)
        if unasked and not self.accept_changes:
            raise HptError(
                f"{self.folder}: changed since {self.checkpoint.name} was written: {in_words(unasked)}. The "
                "resumed run would not be what it would have been without the stop. Put it back, or resume with "
                "--accept-changes, which notes it in the run's records"
            )

    def begin(self) -> None:
        """Writes the recipe and what has changed, and drops the records after `resume_step`.

        Call it after every check has passed: a run that cannot start must leave its folder unchanged.
        """
        if self.world.main:
            self.records.truncate_after(-1 if self.resume_step is None else self.resume_step)
            if self.changes:
                logger.warning(f"Resumed with changes: {in_words(self.changes)}.")
                self.records.log_changes(self.resume_step or 0, [asdict(change) for change in self.changes])
            # Last: after a kill before it, config.yaml is that of the checkpoint, which needs no asking.
            write_file_atomically(self.folder / CONFIG, self.config.to_yaml().encode())

    def fingerprints_at(self, step: int) -> Fingerprints | None:
        """For the checkpoint of `step`, whose metrics are logged; None on other ranks than 0."""
        return self.fingerprints.with_metrics(self.folder, step) if self.world.main else None

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
