"""What can be said about a new run before PyTorch is imported, so that it is said at once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from hpt.data.readers import FILE_KINDS
from hpt.records.checks import check_trackers, check_unused
from hpt.support.errors import ConfigError
from hpt.support.hub import missing_local_path

if TYPE_CHECKING:
    from hpt.config.schema import Config


def check_early(config: Config, to_be_written: Collection[Path]) -> None:
    """HptError for a tracker that is not installed, a folder that is used, and files that are missing.

    to_be_written: files of data that was given as objects.
    """
    check_trackers(config.track)
    check_unused(Path(config.output))
    if config.prepare:
        return  # it makes what is missing
    if not Path(config.model.path).expanduser().is_dir() and (problem := missing_local_path(config.model.path)):
        raise ConfigError(f"model.path = {config.model.path!r}: {problem}")
    for key, sources in (("data.train", config.data.train_sources), ("data.eval", config.data.eval_sources)):
        for source in sources:
            path = Path(source.path)
            if path.suffix in FILE_KINDS and not path.is_file() and path not in to_be_written:
                raise ConfigError(f"{key} = {source.path!r}: no such file (looked in {Path.cwd()})")
