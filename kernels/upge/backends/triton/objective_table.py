"""Objectives as a table of numbers that the coefficient kernel reads."""

from __future__ import annotations

from functools import lru_cache

import torch

from ...inputs import TokenInputs
from ...objective import Clip, Objective, Shaping, SoftGate, StabilizationMask, WeightClip
from ...token_loss import LossFormula
from .kernels import coefficient as codes

REFERENCE_CODES = {"policy": codes.POLICY, "rollout": codes.ROLLOUT, "one": codes.ONE}


def can_fuse(formula: LossFormula, tokens: TokenInputs) -> bool:
    """Whether the kernel can compute the losses: each token by itself, without user-defined functions.

    Of the options it has those that are often used: the entropy bonus and the k3 estimator.
    """
    if tokens.lse_coef is not None or (tokens.kl_coef is not None and formula.kl != "k3"):
        return False
    return all(objective.function is None and not objective.needs_all_tokens for objective in formula.objectives)


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
        return [codes.CLIP.value, 1 - mask.low, 1 + mask.high, float("inf") if mask.dual is None else mask.dual]
    if isinstance(mask, WeightClip):
        return [codes.WEIGHT_DROP.value if mask.drop else codes.WEIGHT_CLIP.value, mask.lower, mask.upper, 0.0]
    if isinstance(mask, Shaping):
        return [codes.SHAPING.value, mask.gamma, 0.0, 0.0]
    if isinstance(mask, SoftGate):
        return [codes.SOFT_GATE.value, mask.tau_positive, mask.tau_negative, 0.0]
    return [codes.UNMASKED.value, 0.0, 0.0, 0.0]
