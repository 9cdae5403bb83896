"""Out of memory, said in the run's own terms: the phase it happened in, and the settings that make room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from hpt.config.schema import Config
from hpt.memory.changes import changes_of, written
from hpt.support.errors import HptError, RolloutError

Phase = Literal["load", "rollout", "verify", "reference", "train", "eval"]
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "bad_alloc",
)
# The phases that a setting helps in, where it is not all of them.
_PHASES: dict[str, tuple[Phase, ...]] = {
    "rollout.batch_size": ("rollout", "eval"),
    "rollout.vllm.memory_share": ("load", "rollout", "eval"),
    "batch.tokens": ("reference", "train"),
    "model.gradient_checkpointing": ("train",),
}
_RESUMABLE = {*_PHASES, "rollout.vllm.sleep_level", "optimizer.offload"}


@contextmanager
def memory_phase(phase: Phase, config: Config) -> Iterator[None]:
    """A part of a run that starts and ends without cached GPU memory.

    HptError where memory does not suffice; RolloutError in the phases that leave the policy as it was.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        kind = RolloutError if phase in ("rollout", "eval") else HptError
        raise kind(_message(phase, config, error)) from error
    finally:
        torch.cuda.empty_cache()


def _message(phase: Phase, config: Config, error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0] or "no memory left"
    changeable, lasting = _remedies(phase, config)
    lines = [f"out of memory in the phase {phase!r} of the run: {first}"]
    if changeable and phase != "load":
        lines.append(f"What makes room, also with --resume {config.output}: {', '.join(changeable)}")
        changeable = []
    if found := [*changeable, *lasting]:
        lines.append(f"In a new run: {', '.join(found)}")
    return "\n  ".join([*lines, f"hpt plan {config.output}/config.yaml [key=value ...] predicts what fits."])


def _remedies(phase: Phase, config: Config) -> tuple[list[str], list[str]]:
    """What the phase is helped by: changes that a resumed run may make, and those that only a new run may."""
    changeable: list[str] = []
    lasting: list[str] = []
    for change in changes_of(config):
        key, value = next(iter(change.items()))
        if phase not in _PHASES.get(key, (phase,)) or (key == "optimizer.offload" and not torch.cuda.is_available()):
            continue
        if key == "rollout.vllm.memory_share" and value > config.rollout.vllm.memory_share:
            continue  # it takes from the trainer
        (changeable if key in _RESUMABLE else lasting).append(written(change))
    if phase == "rollout":
        changeable.append(f"rollout.max_tokens below {config.rollout.max_tokens}")
    return changeable, lasting
