"""Checks of the values in a call's tensors: target ids, NaN and infinities. When they run: see `debugging.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from . import debugging
from .checks import LARGEST_SCALE, SCALE, SMALLEST_SCALE
from .inputs import HeadInputs, TokenArguments
from .token_loss import LossFormula


def check_head_values(head: HeadInputs, counted: Tensor) -> None:
    """Check the values of counted tokens, and those of the bias and, inside `debug`, of the weight."""
    if not debugging.reads_values(head.hidden.device):
        return
    targets = head.targets[counted]
    vocabulary = head.vocabulary_size if head.shard is None else head.shard.total
    bad = targets[(targets < 0) | (targets >= vocabulary)]
    if bad.numel():
        raise ValueError(
            f"targets: ids must be in [0, {vocabulary}) where the token counts; got {int(bad[0])}; "
            "leave such tokens out by mask= or ignore_index="
        )
    not_finite = counted & ~torch.isfinite(head.hidden).all(dim=1)
    if not_finite.any():
        row = int(not_finite.nonzero()[0])
        raise ValueError(f"hidden: must be finite where the token counts; row {row} holds NaN or inf")
    if isinstance(head.temperature, Tensor):
        wrong = head.temperature[counted]
        wrong = wrong[~((wrong >= SMALLEST_SCALE) & (wrong <= LARGEST_SCALE))]
        if wrong.numel():
            raise ValueError(
                f"temperature: divided by logit_scale, it must be {SCALE} where the token counts; got {float(wrong[0])}"
            )
    if head.bias is not None:
        if head.shard is not None:
            targets, here = head.shard.local(targets)
            targets = targets[here]
        _check_bias(head.bias, targets)
    if debugging.active() and not torch.isfinite(head.weight).all():
        row = int((~torch.isfinite(head.weight).all(dim=1)).nonzero()[0])
        raise ValueError(f"weight: must be finite; row {row} holds NaN or inf")


def _check_bias(bias: Tensor, targets: Tensor) -> None:
    wrong = bias[bias.isnan() | (bias == float("inf"))]
    if wrong.numel():
        raise ValueError(f"bias: must be finite, or -inf to switch an entry off; got {float(wrong[0])}")
    off = targets[bias[targets] == float("-inf")]
    if off.numel():
        raise ValueError(f"bias: must be finite at the targets of tokens that count; entry {int(off[0])} is -inf")


def check_token_values(tokens: TokenArguments, head: HeadInputs, formula: LossFormula) -> None:
    """Check the values of the per-token arguments on the tokens where they are read."""
    if not debugging.reads_values(head.hidden.device):
        return
    assert tokens.mask is not None
    counted = tokens.mask
    index, objectives = tokens.objective_index, formula.objectives
    if index is not None:
        bad = index[counted & ((index < 0) | (index >= len(objectives)))]
        if bad.numel():
            raise ValueError(
                f"objective_index: must be in [0, {len(objectives)}) where the token counts; got {int(bad[0])}"
            )
    reads_advantages, reads_old = torch.zeros_like(counted), torch.zeros_like(counted)
    for number, objective in enumerate(objectives):
        follows = counted if index is None else counted & (index == number)
        if objective.needs_advantages:
            reads_advantages |= follows
        if objective.reads_old_logprobs:
            reads_old |= follows
    penalised = torch.zeros_like(counted) if tokens.kl_coef is None else counted & (tokens.kl_coef != 0)
    if formula.kl == "k3_ratio":
        reads_old |= penalised
    if tokens.rollout_logprobs is not None:
        reads_old = counted
    everywhere = ("weights", "rollout_logprobs", "entropy_coef", "kl_coef", "lse_coef")
    where = dict.fromkeys(everywhere, counted) | {
        "advantages": reads_advantages,
        "old_logprobs": reads_old,
        "ref_logprobs": penalised,
    }
    for name, read in where.items():
        _check_finite(name, getattr(tokens, name), read)


def _check_finite(name: str, value: Tensor | None, where: Tensor) -> None:
    if value is None:
        return
    wrong = where & ~torch.isfinite(value)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: must not be NaN or infinite where it is read; row {row} is {float(value[row])}")
