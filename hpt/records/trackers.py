"""Sends metrics to TensorBoard, trackio and W&B, in addition to the run's own records."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from hpt.support.errors import HptError
from hpt.support.optional_packages import installed


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Logs the numbers of one step. Values that are not numbers are left out."""

    def close(self) -> None:
        """Sends or writes what is buffered."""


def open_trackers(
    names: Sequence[str], folder: str | Path, config: dict[str, Any], *, resume_step: int | None = None
) -> list[Tracker]:
    """Opens the named trackers for the run in `folder`.

    names: any of tensorboard, trackio, wandb. TensorBoard writes to `folder/tensorboard`, W&B to `folder/wandb`,
    trackio to its own store. The run is named after the folder, in the project `hpt`.
    config: the run's recipe as plain values, stored with the numbers.
    resume_step: the step of the checkpoint that the run is resumed from. TensorBoard replaces what was logged after
    it; trackio and W&B cannot, and keep both.

    HptError for an unknown name, for a package that is not installed (all are checked before any tracker is opened)
    and for a tracker that does not start.
    """
    for name in names:
        if name not in _TRACKERS:
            raise HptError(f"track: unknown tracker {name!r}; allowed: {', '.join(_TRACKERS)}")
        if not installed(name):
            raise HptError(f'track: {name} is not installed; run: pip install "hpt[{name}]"')
    trackers: list[Tracker] = []
    for name in names:
        try:
            trackers.append(_TRACKERS[name](Path(folder), config, resume_step))
        except Exception as error:  # each package has its own errors
            for tracker in trackers:
                tracker.close()
            raise HptError(f"track: {name} could not start: {error}") from error
    return trackers


class _TensorBoard:
    def __init__(self, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
        self.writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", resume_step or 0)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        for key, value in _numbers(metrics).items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _RunTracker:
    """A tracker whose package logs to a run object."""

    run: Any

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.run.log(_numbers(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio(_RunTracker):
    def __init__(self, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        import trackio

        resume = "never" if resume_step is None else "allow"
        self.run = trackio.init(project="hpt", name=folder.resolve().name, config=config, resume=resume)


class _WandB(_RunTracker):
    def __init__(self, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        import wandb

        id_file = folder / "wandb" / "id"
        continued = resume_step is not None and id_file.exists()
        run_id = id_file.read_text() if continued else uuid.uuid4().hex
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(run_id)
        name = folder.resolve().name
        self.run = wandb.init(project="hpt", name=name, id=run_id, resume="allow", dir=str(folder), config=config)


_TRACKERS: dict[str, Callable[[Path, dict[str, Any], int | None], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _WandB,
}


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float)) and key != "step"}
