"""Checkpoints: a plain Hugging Face folder plus the trainer's state, written whole or not at all.

A checkpoint is written into a hidden sibling folder, flushed to disk, and renamed: a run killed at any moment leaves
either the new checkpoint or none of it. It has checksums of its files, which a resume checks, and fingerprints of what
the run depends on. Random states need no saving: every draw of a step is seeded by (seed, step).
Every process of a run writes its part of the trainer's state into the one folder, so all nodes must see it.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpt.model.loading import save_model
from hpt.records.checkpoints import checkpoint_path, checkpoints, step_of
from hpt.records.checksums import CHECKSUMS, checksum, files_of, read_checksums, write_checksums
from hpt.records.fingerprints import FINGERPRINTS, Fingerprints
from hpt.support.distributed import ALONE, World
from hpt.support.errors import HptError
from hpt.support.files import folder_atomically, remove_folder_atomically, remove_leftovers

logger = logging.getLogger(__name__)

STATE = "trainer_state.pt"  # of rank 0; that of another is trainer_state-RANK.pt


def save_checkpoint(
    run: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    *,
    keep: int,
    fingerprints: Fingerprints | None = None,
    weights: dict[str, torch.Tensor] | None = None,
    world: World = ALONE,
) -> Path:
    """Writes the checkpoint of `step` and removes all but the newest `keep`. HptError if it cannot be written.

    state: this rank's. weights: on rank 0, the model's where its modules do not hold them.
    """

    def write(folder: Path) -> None:
        if world.main:
            save_model(model, folder, weights)
            tokenizer.save_pretrained(folder)
            if fingerprints:
                fingerprints.write(folder)
        torch.save(state, _state_path(folder, world))

    path = checkpoint_path(run, step)
    # Room first: what the new one replaces goes before it is written, but for the last complete one.
    world.once(lambda: _remove(checkpoints(run)[: -max(keep - 1, 1)]))
    write_checkpoint(path, write, world)
    world.once(lambda: _remove(checkpoints(run)[:-keep]))
    return path


def _remove(old: list[Path]) -> None:
    for path in old:
        remove_folder_atomically(path)


def write_checkpoint(path: Path, write: Callable[[Path], None], world: World = ALONE) -> None:
    """Lets `write`, called on every rank, fill a folder that becomes `path` only once all of it is on the disk."""
    try:
        world.once(lambda: remove_leftovers(path.parent))
        with ExitStack() as stack:  # empty on all ranks but 0
            partial = world.once(lambda: stack.enter_context(folder_atomically(path)))
            world.agree(lambda: write(partial))
            checksums = _checksums(partial, world.once(lambda: files_of(partial)), world)
            world.once(lambda: write_checksums(partial, checksums))
            world.once(stack.close)
    except Exception as error:
        free = shutil.disk_usage(path.parent).free
        reason, full = str(error), os.strerror(errno.ENOSPC)
        if free < 2**20 and full not in reason:
            reason = f"{full} ({reason})"  # torch.save does not say so
        spare = ", ".join(str(each) for each in checkpoints(path.parent.parent)[:-1])
        raise HptError(
            f"checkpoint {path} could not be written: {reason} ({free / 2**20:.0f} MiB free on the disk). "
            "Earlier checkpoints are untouched; make room and continue with --resume"
            + (f", which needs only the newest: {spare} can go (and see checkpoint.keep)." if spare else ".")
        ) from error


def check_checkpoint(checkpoint: Path, world: World = ALONE) -> None:
    """HptError where a file is not what was written, or where another number of processes wrote the checkpoint.

    A collective. Of a checkpoint of an earlier version, which has no checksums, it is a warning.
    """
    if not check_files(checkpoint, world):
        logger.warning(
            f"{checkpoint} is of an earlier version of hpt, without checksums and fingerprints: whether its files, the "
            "data or the settings have changed since is not checked."
        )
    writers = len(list(checkpoint.glob(f"{Path(STATE).stem}*.pt")))
    if writers not in (0, world.size):
        raise HptError(
            f"{checkpoint} was written by {writers} processes, and this run has {world.size}: resume it on {writers}, "
            f"or start a new run from its weights with model.path={checkpoint}"
        )


def check_files(checkpoint: Path, world: World = ALONE) -> bool:
    """HptError where there is no file, one is not what was written, or not in the checkpoint's checksums. A collective.

    False where nothing can be checked: the folder is of another program, or of an earlier version of hpt.
    """
    if world.once(lambda: checkpoint.is_dir() and not files_of(checkpoint)):
        raise HptError(f"{checkpoint} is empty. {_without(checkpoint)}")
    names = world.once(lambda: {name for name in (CHECKSUMS, FINGERPRINTS) if (checkpoint / name).is_file()})
    if not names:
        return False
    if CHECKSUMS not in names:
        raise HptError(f"{checkpoint / CHECKSUMS} is missing. {_without(checkpoint)}")
    try:
        written = world.once(lambda: read_checksums(checkpoint))
    except HptError as error:
        raise HptError(f"{error}. {_without(checkpoint)}") from error
    found = _checksums(checkpoint, list(written), world)
    for name, digits in written.items():
        if found[name] != digits:
            state = "is not what was written: its checksum is another" if found[name] else "is missing"
            raise HptError(f"{checkpoint / name} {state}. {_without(checkpoint)}")
    for name in world.once(lambda: files_of(checkpoint)):
        if name not in written and name != CHECKSUMS:
            raise HptError(
                f"{checkpoint / name} is not in {CHECKSUMS}: remove it, or {CHECKSUMS} is not whole. "
                f"{_without(checkpoint)}"
            )
    return True


def load_state(checkpoint: Path, world: World = ALONE) -> dict[str, Any]:
    """This rank's state. HptError where its file is broken."""
    path = _state_path(checkpoint, world)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise HptError(f"{path} is broken ({type(error).__name__}). {_without(checkpoint)}") from error


def _without(checkpoint: Path) -> str:
    """What to do where a checkpoint cannot be used."""
    older = [each for each in checkpoints(checkpoint.parent.parent) if step_of(each) < step_of(checkpoint)]
    if older:
        return f"Remove {checkpoint} and resume: the run goes on from {older[-1].name}"
    return (
        f"Remove {checkpoint} and resume with --accept-changes: there is no older one, so the run starts again from "
        "step 0"
    )


def _checksums(folder: Path, names: list[str], world: World) -> dict[str, str]:
    """Of files in a folder by name, "" of one that is missing; each rank reads its part. A collective."""

    def read(own: Sequence[str]) -> list[str]:
        return [checksum(folder / name) if (folder / name).is_file() else "" for name in own]

    return dict(zip(names, world.spread(names, read), strict=True))


def _state_path(checkpoint: Path, world: World) -> Path:
    return checkpoint / (STATE if world.main else f"{Path(STATE).stem}-{world.rank}.pt")
