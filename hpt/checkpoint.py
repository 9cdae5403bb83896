"""Checkpoints: a plain Hugging Face folder plus the trainer's state, written whole or not at all.

A checkpoint is written into a hidden sibling folder, flushed to disk, and renamed: a run killed at any moment leaves
either the new checkpoint or none of it. Random states need no saving: every draw of a step is seeded by (seed, step).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpt.errors import HptError
from hpt.model import save_model
from hpt.records import flush

STATE = "trainer_state.pt"
_NAME = re.compile(r"step-(\d{6,})")


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def checkpoints(run: Path) -> list[Path]:
    """A run's complete checkpoints, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def save_checkpoint(
    run: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Writes the checkpoint of `step` and removes all but the newest `keep`. HptError where the disk refuses."""

    def write(folder: Path) -> None:
        save_model(model, folder)
        tokenizer.save_pretrained(folder)
        torch.save(state, folder / STATE)

    path = checkpoint_path(run, step)
    write_atomically(path, write)
    for old in checkpoints(run)[:-keep]:
        # Renamed first: a kill in the middle of a removal must not leave a half checkpoint under a good name.
        doomed = old.with_name(f".removed-{old.name}")
        old.rename(doomed)
        shutil.rmtree(doomed)
    return path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a folder that becomes `path` only once all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in [*path.parent.glob(".partial-*"), *path.parent.glob(".removed-*")]:
        shutil.rmtree(leftover)
    partial = path.with_name(f".partial-{path.name}")
    try:
        partial.mkdir()
        write(partial)
        for file in [*partial.rglob("*"), partial]:
            flush(file)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(path.parent).free
        raise HptError(
            f"checkpoint {path} could not be written: {error} ({free / 2**20:.0f} MiB free on the disk). "
            "Earlier checkpoints are untouched; make room and continue with --resume."
        ) from error
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    flush(path.parent)


def load_state(checkpoint: Path) -> dict[str, Any]:
    try:
        return torch.load(checkpoint / STATE, weights_only=True, map_location="cpu")
    except Exception as error:
        raise HptError(f"{checkpoint / STATE} is not the state of a trainer: {error}") from error
