"""Objectives as a table of numbers that the coefficient kernel reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from ...objective import Clip, Objective, Shaping, SoftGate, StabilizationMask, WeightClip
from .kernels import coefficient as codes

REFERENCE_CODES = {"policy": codes.POLICY, "rollout": codes.ROLLOUT, "one": codes.ONE}


def can_fuse(objectives: Sequence[Objective]) -> bool:
    """Whether the kernel can compute them: each token by itself, and no user-defined function."""
    return all(objective.function is None and not objective.needs_all_tokens for objective in objectives)


@lru_cache(maxsize=64)
def objective_table(objectives: tuple[Objective, ...], device: torch.device) -> torch.Tensor:
    """(K, FIELDS) float32, a line per objective. Cached, since copying it to the device makes the CPU wait."""
    table = [
        [
            REFERENCE_CODES[objective.reference].value,
            float(objective.advantage == "one"),
            float(objective.likelihood == "ratio"),
            *_mask_fields(objective.mask),
        ]
        for objective in objectives
    ]
    return torch.tensor(table, dtype=torch.float32, device=device)


def _mask_fields(mask: StabilizationMask) -> list[float]:
    """The code of the stabilization mask and its three parameters."""
    if isinstance(mask, Clip):
        return [codes.CLIP.value, mask.low, mask.high, float("inf") if mask.dual is None else mask.dual]
    if isinstance(mask, WeightClip):
        return [codes.WEIGHT_DROP.value if mask.drop else codes.WEIGHT_CLIP.value, mask.high, 0.0, 0.0]
    if isinstance(mask, Shaping):
        return [codes.SHAPING.value, mask.gamma, 0.0, 0.0]
    if isinstance(mask, SoftGate):
        return [codes.SOFT_GATE.value, mask.tau_positive, mask.tau_negative, 0.0]
    return [codes.UNMASKED.value, 0.0, 0.0, 0.0]
