"""Sends metrics, the recipe and sample rollouts to TensorBoard, trackio and W&B, beside the run's own records."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

from hpt.config.sections.training import TrackConfig
from hpt.records.checks import check_trackers
from hpt.records.samples import Sample
from hpt.support.errors import HptError

COLUMNS = [field.name for field in fields(Sample)]
TABLE = "rollouts"
"""The name of the table of sample rollouts."""


class Tracker(Protocol):
    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Logs the numbers of one step. Values that are not numbers are left out."""

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Logs a table of rollouts of one step."""

    def close(self) -> None:
        """Sends or writes what is buffered."""


def open_trackers(
    settings: TrackConfig, folder: str | Path, config: dict[str, Any], *, resume_step: int | None = None
) -> list[Tracker]:
    """Opens the trackers of `settings` for the run in `folder`.

    TensorBoard writes to `folder/tensorboard`, W&B to `folder/wandb`, trackio to its own store.
    config: the run's recipe as plain values, stored with the numbers.
    resume_step: the step of the checkpoint that the run is resumed from. TensorBoard replaces what was logged after
    it; trackio and W&B cannot, and keep both.

    HptError for a package that is not installed (all are checked before any tracker is opened) and for a tracker that
    does not start.
    """
    check_trackers(settings)
    trackers: list[Tracker] = []
    for name in settings.to:
        try:
            trackers.append(_TRACKERS[name](settings, Path(folder), config, resume_step))
        except Exception as error:  # each package has its own errors
            for tracker in trackers:
                tracker.close()
            raise HptError(f"track: {name} could not start: {error}") from error
    return trackers


class _TensorBoard:
    def __init__(self, settings: TrackConfig, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)
        self.writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", resume_step or 0)

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        for key, value in _numbers(metrics).items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        lines = [COLUMNS, ["---"] * len(COLUMNS), *(_markdown_cells(sample) for sample in samples)]
        self.writer.add_text(TABLE, "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines), step)

    def close(self) -> None:
        self.writer.close()


class _RunTracker:
    """A tracker whose package logs to a run object and has tables."""

    run: Any
    make_table: Callable[..., Any]

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        self.run.log(_numbers(metrics), step=step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        rows = [self.cells(sample) for sample in samples]
        self.run.log({TABLE: self.make_table(columns=COLUMNS, data=rows)}, step=step)

    def cells(self, sample: Sample) -> list[Any]:
        """A row of the table."""
        return list(asdict(sample).values())

    def close(self) -> None:
        self.run.finish()


class _Trackio(_RunTracker):
    def __init__(self, settings: TrackConfig, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        import trackio

        self.run = trackio.init(
            project=settings.project,
            name=settings.name or folder.resolve().name,
            config=config,
            resume="never" if resume_step is None else "allow",
        )
        self.make_table = trackio.Table

    def cells(self, sample: Sample) -> list[Any]:
        return _markdown_cells(sample)  # which trackio's tables render


class _WandB(_RunTracker):
    def __init__(self, settings: TrackConfig, folder: Path, config: dict[str, Any], resume_step: int | None) -> None:
        import wandb

        id_file = folder / "wandb" / "id"
        continued = resume_step is not None and id_file.exists()
        run_id = id_file.read_text() if continued else uuid.uuid4().hex
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(run_id)
        self.run = wandb.init(
            project=settings.project,
            name=settings.name or folder.resolve().name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config=config,
        )
        self.make_table = wandb.Table


_TRACKERS: dict[str, Callable[[TrackConfig, Path, dict[str, Any], int | None], Tracker]] = {
    "tensorboard": _TensorBoard,
    "trackio": _Trackio,
    "wandb": _WandB,
}


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float)) and key != "step"}


def _markdown_cells(sample: Sample) -> list[Any]:
    return [as_markdown(value) if isinstance(value, str) else value for value in asdict(sample).values()]


# As character references these are text in Markdown and in HTML alike, also in a table's cell.
_MARKUP = {ord(character): f"&#{ord(character)};" for character in "&<>\"'\\`*_~#|[]!$:"} | {ord("\n"): "<br>"}


def as_markdown(text: str) -> str:
    """Markdown on one line that shows `text` as it is: what a model or a data file wrote must not become markup."""
    return text.translate(_MARKUP)
