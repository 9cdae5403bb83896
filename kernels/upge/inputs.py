"""The inputs of one call: what makes the logits, and the per-token values that make the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadInputs:
    """What makes the logits z = cap(h W^T + b) / T, where cap(u) = softcap * tanh(u / softcap), as in Gemma 2.

    hidden (N, D), weight (V, D) and bias (V,) are bfloat16, float16 or float32. targets (N,) are integers. temperature T is a float or (N,) float32. Masked rows of hidden, targets and
    temperature are never read.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None = None
    temperature: float | Tensor = 1.0
    softcap: float | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which hidden and weight are multiplied: the wider of theirs, and float32 for two 16-bit ones."""
        return torch.promote_types(self.hidden.dtype, self.weight.dtype)

    @property
    def token_count(self) -> int:
        return self.hidden.shape[0]

    @property
    def vocabulary_size(self) -> int:
        return self.weight.shape[0]

    def at(self, rows: Tensor) -> HeadInputs:
        """The inputs of the tokens at the positions `rows`, (n,) integers. Copies their hidden states."""
        temperature = self.temperature
        if isinstance(temperature, Tensor):
            temperature = temperature.index_select(0, rows)
        return replace(
            self,
            hidden=self.hidden.index_select(0, rows),
            targets=self.targets.index_select(0, rows),
            temperature=temperature,
        )


@dataclass(frozen=True)
class NeededGradients:
    """Which gradients a call has to compute."""

    hidden: bool = False
    weight: bool = False
    bias: bool = False

    @classmethod
    def of(cls, head: HeadInputs) -> NeededGradients:
        """Those of the inputs that require a gradient, unless gradients are switched off."""
        return cls(_requires_grad(head.hidden), _requires_grad(head.weight), _requires_grad(head.bias))

    def __bool__(self) -> bool:
        return self.hidden or self.weight or self.bias


def _requires_grad(value: Tensor | None) -> bool:
    return value is not None and value.requires_grad and torch.is_grad_enabled()


@dataclass(frozen=True)
class TokenArguments:
    """The per-token arguments of a call, each (N,) on the device of `hidden`, or None where the call gave none."""

    weights: Tensor | None = None
    mask: Tensor | None = None
    objective_index: Tensor | None = None
    advantages: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    sequence_ids: Tensor | None = None


@dataclass(frozen=True)
class TokenInputs(TokenArguments):
    """Checked per-token arguments. `weights` is always there and includes the truncated importance ratio."""

    weights: Tensor

    def at(self, rows: Tensor) -> Self:
        """The inputs of the tokens at the positions `rows`, (n,) integers."""
        return self.map(lambda vector: vector.index_select(0, rows))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `change` applied to every tensor."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})


class UserBatch:
    """The `batch` that a user-defined objective receives: the call's per-token arguments as attributes."""

    def __init__(self, tokens: TokenInputs, objective: str):
        self._tokens = tokens
        self._objective = objective

    def __getattr__(self, name: str) -> Tensor:
        readable = [field.name for field in fields(TokenInputs) if field.name != "objective_index"]
        if name not in readable:
            raise AttributeError(f"batch.{name}: objective {self._objective!r} can read {', '.join(readable)}")
        value: Tensor | None = getattr(self._tokens, name)
        if value is None and name == "mask":
            return torch.ones_like(self._tokens.weights, dtype=torch.bool)
        if value is None:
            raise ValueError(f"{name}: objective {self._objective!r} reads it, but the call was not given it")
        return value
