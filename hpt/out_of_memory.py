"""Out of memory, said in the run's own terms: the phase it happened in, and the settings that make room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from hpt.config import Config
from hpt.errors import HptError, RolloutError

Phase = Literal["load", "rollout", "verify", "reference", "train", "eval"]
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "bad_alloc",
)


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
    """Settings that are not in use yet: those a resumed run may change, and those that only a new run may."""
    model, optimizer, local = config.model, config.optimizer, config.engine == "local"
    in_rollouts = phase in ("rollout", "eval")
    next_checkpointing = {False: "true", True: "offload", "offload": None}[model.gradient_checkpointing]
    changeable = [
        (in_rollouts and config.rollout.batch_size > 1, f"rollout.batch_size={config.rollout.batch_size // 2}"),
        (in_rollouts and phase == "rollout", f"rollout.max_tokens below {config.rollout.max_tokens}"),
        (
            phase in ("train", "reference") and config.batch.tokens > 1,
            f"batch.tokens={config.batch.tokens // 2} (no micro-batch is smaller than its longest row)",
        ),
        (phase == "train" and next_checkpointing is not None, f"model.gradient_checkpointing={next_checkpointing}"),
        (local and not optimizer.offload and torch.cuda.is_available(), "optimizer.offload=true"),
    ]
    lasting = [
        (model.dtype == "float32", "model.dtype=bfloat16"),
        (local and optimizer.states == "float32", "optimizer.states=8bit"),
        (model.lora is None, "model.lora={rank: 32}"),
        (model.lora is None or model.quantization is None, "model.lora with model.quantization=nf4"),
        (not local and config.deepspeed.stage < 3, "deepspeed.stage=3"),
        (not local and not config.deepspeed.offload_optimizer, "deepspeed.offload_optimizer=true"),
    ]
    first, second = ([text for wanted, text in found if wanted] for found in (changeable, lasting))
    return first, second
