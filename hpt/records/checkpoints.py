"""Where a run's checkpoints are."""

from __future__ import annotations

import re
from pathlib import Path

from hpt.support.errors import HptError

_NAME = re.compile(r"step-([0-9]{6}|[1-9][0-9]{6,17})")


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def last_checkpoint(run: Path) -> Path:
    """The newest of a run's complete checkpoints; HptError where there is none."""
    found = checkpoints(run)
    if not found:
        raise HptError(f"{run}: this run has no checkpoint yet")
    return found[-1]


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])
