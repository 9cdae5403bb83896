"""What can be said about a run's records before PyTorch is imported."""

from __future__ import annotations

from pathlib import Path

from hpt.config.sections.training import TrackConfig
from hpt.records.checkpoints import checkpoints
from hpt.records.files import METRICS
from hpt.support.errors import ConfigError, HptError
from hpt.support.optional_packages import installed


def check_trackers(settings: TrackConfig) -> None:
    """HptError for a tracker whose package is not installed."""
    for name in settings.to:
        if not installed(name):
            raise HptError(f'track: {name} is not installed; run: pip install "hpt[{name}]"')


def check_unused(folder: Path) -> None:
    """ConfigError for a folder that holds a run's records, or in which none can be written."""
    metrics = folder / METRICS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        used = bool(checkpoints(folder)) or (metrics.is_file() and metrics.stat().st_size > 0)
    except OSError as error:
        raise ConfigError(f"output = {str(folder)!r}: cannot be written: {error.strerror}") from None
    if used:
        raise ConfigError(
            f"output = {str(folder)!r} already holds a run: continue it with --resume {folder}, "
            "or choose another output="
        )
