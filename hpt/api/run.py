"""A run as Python sees it: its folder, its metrics and its last model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpt.records.checkpoints import last_checkpoint
from hpt.records.files import CONFIG, METRICS, read_metrics
from hpt.support.errors import HptError


class Run:
    """A run in its folder, finished or not. It reads the records when they are asked for.

    folder: as in the recipe's `output`. HptError where there is no run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / CONFIG).is_file():
            raise HptError(f"{folder}: there is no run here ({CONFIG} is missing)")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, step {self.step} of {self.steps})"

    @property
    def config(self) -> dict[str, Any]:
        """Its recipe, every setting written out."""
        import yaml

        settings: dict[str, Any] = yaml.safe_load((self.folder / CONFIG).read_text(encoding="utf-8"))
        return settings

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step, in order, as in metrics.jsonl."""
        return read_metrics(self.folder)

    @property
    def step(self) -> int:
        """The last step that it has done, 0 before the first."""
        if not (self.folder / METRICS).is_file():
            return 0
        metrics = self.metrics
        return int(metrics[-1]["step"]) if metrics else 0

    @property
    def steps(self) -> int:
        """The steps that its recipe asks for."""
        return int(self.config["steps"])

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    @property
    def checkpoint(self) -> Path:
        """The folder of the last complete checkpoint, which transformers can load. HptError where there is none."""
        return last_checkpoint(self.folder)
