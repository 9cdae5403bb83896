"""Turns an out-of-memory error into a message that names the phase of the run and the settings that save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from hpt.config.schema import Config
from hpt.memory.savings import as_settings, saving_changes
from hpt.support.errors import HptError, RolloutError

Phase = Literal["load", "rollout", "verify", "reference", "train", "eval"]
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "bad_alloc",
    "can't start new thread",  # there is no memory for its stack
)
# The phases in which a setting saves memory; settings that are not listed do so in all phases.
_PHASES_OF: dict[str, tuple[Phase, ...]] = {
    "rollout.batch_size": ("rollout", "eval"),
    "rollout.vllm.memory_share": ("load", "rollout", "eval"),
    "batch.tokens": ("reference", "train"),
    "model.gradient_checkpointing": ("train",),
}
# Settings that may differ when a run is resumed.
_RESUMABLE = {*_PHASES_OF, "rollout.vllm.sleep_level", "optimizer.offload"}


@contextmanager
def memory_phase(phase: Phase, config: Config) -> Iterator[None]:
    """Context for one phase of a run. Frees the cached GPU memory at its end.

    Raises HptError if the memory does not suffice; in "rollout" and "eval", which do not change the policy,
    RolloutError.
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
    resumable, new_run = _remedies(phase, config)
    lines = [f"out of memory in the phase {phase!r} of the run: {first}"]
    if phase == "load":  # there is no run to resume yet
        new_run = [*resumable, *new_run]
    elif resumable:
        lines.append(f"To save memory, also with --resume {config.output}: {', '.join(resumable)}")
    if new_run:
        lines.append(f"To save memory in a new run: {', '.join(new_run)}")
    lines.append(f"hpt plan {config.output}/config.yaml [key=value ...] predicts what fits.")
    return "\n  ".join(lines)


def _remedies(phase: Phase, config: Config) -> tuple[list[str], list[str]]:
    """Changes that save memory in the phase: those that a resumed run may make, and those that need a new run."""
    resumable: list[str] = []
    new_run: list[str] = []
    for change in saving_changes(config):
        key, value = next(iter(change.items()))
        if key in _PHASES_OF and phase not in _PHASES_OF[key]:
            continue
        if key == "optimizer.offload" and not torch.cuda.is_available():
            continue
        if key == "rollout.vllm.memory_share" and value > config.rollout.vllm.memory_share:
            continue  # a larger share leaves the trainer less
        if key in _RESUMABLE:
            resumable.append(as_settings(change))
        else:
            new_run.append(as_settings(change))
    if phase == "rollout":
        resumable.append(f"rollout.max_tokens below {config.rollout.max_tokens}")
    return resumable, new_run
