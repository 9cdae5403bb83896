"""Trackers beside the run's own records: TensorBoard, trackio and W&B, each where it is installed."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from hpt.support.errors import HptError


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the numbers of one step; values that are not numbers are left out."""

    def close(self) -> None:
        """Send or write what is still held back."""


def open_trackers(
    names: Sequence[str], folder: str | Path, config: dict[str, Any], *, resume_step: int | None = None
) -> list[Tracker]:
    """Open the named trackers for the run in `folder`.

    names: any of tensorboard, trackio, wandb. TensorBoard writes to `folder/tensorboard`, W&B to
    `folder/wandb`, trackio to its own store; the run is called after the folder, in the project `hpt`.
    config: the run's whole recipe as plain values, kept beside the numbers.
    resume_step: the checkpoint's step that a resumed run goes on from; what was logged past it is replaced by
    TensorBoard; trackio and W&B cannot take numbers back and keep those first logged too.

    Raises HptError for an unknown name, for one that is not installed (all are checked before any is opened)
    and where a tracker refuses to start.
    """
    for name in names:
        if name not in _TRACKERS:
            raise HptError(f"track: unknown tracker {name!r}; allowed: {', '.join(_TRACKERS)}")
        if importlib.util.find_spec(name) is None:
            raise HptError(f'track: {name} is not installed; run: pip install "hpt[{name}]"')
    trackers: list[Tracker] = []
    for name in names:
        try:
            trackers.append(_TRACKERS[name](Path(folder), config, resume_step))
        except Exception as error:  # a service of its own: whatever keeps it from starting is for the user to mend
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


class _Trackio:
    def __init__(self, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        import trackio

        resume = "never" if resume_step is None else "allow"
        self.run = trackio.init(project="hpt", name=folder.resolve().name, config=config, resume=resume)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.run.log(_numbers(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class _WandB:
    def __init__(self, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        import wandb

        identity = folder / "wandb" / "id"
        resumed = resume_step is not None and identity.exists()
        run_id = identity.read_text() if resumed else uuid.uuid4().hex
        identity.parent.mkdir(parents=True, exist_ok=True)
        identity.write_text(run_id)
        name = folder.resolve().name
        self.run = wandb.init(project="hpt", name=name, id=run_id, resume="allow", dir=str(folder), config=config)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.run.log(_numbers(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


_TRACKERS: dict[str, Callable[[Path, dict[str, Any], int | None], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _WandB,
}


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float)) and key != "step"}
