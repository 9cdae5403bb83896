"""Checkpoints: a plain Hugging Face folder plus the trainer's state, written whole or not at all.

A checkpoint is written into a hidden sibling folder, flushed to disk, and renamed: a run killed at any moment leaves
either the new checkpoint or none of it. Random states need no saving: every draw of a step is seeded by (seed, step).
Every process of a run writes its part of the trainer's state into the one folder, so all nodes must see it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpt.model.loading import save_model
from hpt.records.checkpoints import checkpoint_path, checkpoints
from hpt.support.distributed import ALONE, World
from hpt.support.errors import HptError
from hpt.support.files import folder_atomically, remove_folder_atomically, remove_leftovers

STATE = "trainer_state.pt"  # of rank 0; that of another is trainer_state-RANK.pt


def save_checkpoint(
    run: Path,
    step: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, Any],
    *,
    keep: int,
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
            world.once(stack.close)
    except Exception as error:
        free = shutil.disk_usage(path.parent).free
        spare = ", ".join(str(each) for each in checkpoints(path.parent.parent)[:-1])
        raise HptError(
            f"checkpoint {path} could not be written: {error} ({free / 2**20:.0f} MiB free on the disk). "
            "Earlier checkpoints are untouched; make room and continue with --resume"
            + (f", which needs only the newest: {spare} can go (and see checkpoint.keep)." if spare else ".")
        ) from error


def load_state(checkpoint: Path, world: World = ALONE) -> dict[str, Any]:
    """This rank's state. HptError where another number of processes wrote the checkpoint, or its file is broken."""
    writers = len(list(checkpoint.glob(f"{Path(STATE).stem}*.pt")))
    if writers not in (0, world.size):
        raise HptError(
            f"{checkpoint} was written by {writers} processes, and this run has {world.size}: resume it on {writers}, "
            f"or start a new run from its weights with model.path={checkpoint}"
        )
    path = _state_path(checkpoint, world)
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        earlier = [each for each in checkpoints(checkpoint.parent.parent) if each.name < checkpoint.name]
        advice = "there is no older one, so the run starts again from step 0"
        if earlier:
            advice = f"the run goes on from {earlier[-1].name}"
        raise HptError(
            f"{path} is broken ({type(error).__name__}). Remove {checkpoint} and resume: {advice}"
        ) from error


def _state_path(checkpoint: Path, world: World) -> Path:
    return checkpoint / (STATE if world.main else f"{Path(STATE).stem}-{world.rank}.pt")
