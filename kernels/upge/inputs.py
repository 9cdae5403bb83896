"""The inputs of one call: what makes the logits, and the per-token values that make the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from .vocabulary import VocabularyShard


@dataclass(frozen=True)
class HeadInputs:
    """What makes the logits z = cap(h W^T + b) / T, where cap(u) = softcap * tanh(u / softcap), as in Gemma 2.

    hidden (N, D), weight (V, D) and bias (V,) are bfloat16, float16 or float32. targets (N,) are integers. temperature
    T is a float or (N,) float32. Masked rows of hidden, targets and temperature are never read. With a shard, weight
    and bias are this rank's rows of the vocabulary.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None = None
    temperature: float | Tensor = 1.0
    softcap: float | None = None
    shard: VocabularyShard | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which hidden and weight are multiplied: the wider of theirs, and float32 for two 16-bit ones."""
        return torch.promote_types(self.hidden.dtype, self.weight.dtype)

    @property
    def token_count(self) -> int:
        return self.hidden.shape[0]

    @property
    def vocabulary_size(self) -> int:
        """Rows of weight."""
        return self.weight.shape[0]

    def local_targets(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The targets of the tokens at `rows` as rows of weight, (n,) int64, and whether they are (None: all are)."""
        targets = self.targets.index_select(0, rows).long()
        return (targets, None) if self.shard is None else self.shard.local(targets)

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
    """Which gradients a call has to compute.

    entropy: whether the loss may depend on the entropies. Soft-capped heads take more memory for it.
    """

    hidden: bool = False
    weight: bool = False
    bias: bool = False
    entropy: bool = True

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
    """The per-token arguments of a call, each (N,) on the device of `hidden`, or None where the call gave none.

    columns: the extra values per token that user-defined objectives read, by name.
    """

    weights: Tensor | None = None
    mask: Tensor | None = None
    objective_index: Tensor | None = None
    advantages: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    rollout_logprobs: Tensor | None = None
    sequence_ids: Tensor | None = None
    entropy_coef: Tensor | None = None
    kl_coef: Tensor | None = None
    lse_coef: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def named(self) -> dict[str, Tensor]:
        """The tensors that the call was given, `columns` among them, by name."""
        named = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "columns"}
        return {name: value for name, value in named.items() if value is not None} | dict(self.columns)


@dataclass(frozen=True)
class TokenInputs(TokenArguments):
    """Checked per-token arguments, float32 where they are not integers or bool. `weights` and `mask` are always there.

    importance: the truncated importance ratio, (N,); None: 1.
    """

    weights: Tensor
    mask: Tensor
    importance: Tensor | None = None

    @property
    def policy_weights(self) -> Tensor:
        """The weight of the policy's loss: w, times the truncated importance ratio."""
        return self.weights if self.importance is None else self.weights * self.importance

    def at(self, rows: Tensor) -> Self:
        """The inputs of the tokens at the positions `rows`, (n,) integers."""
        return self.map(lambda vector: vector.index_select(0, rows))

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `change` applied to every tensor."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "columns":
                changed["columns"] = {name: change(column) for name, column in value.items()}
            elif value is not None:
                changed[item.name] = change(value)
        return replace(self, **changed)


class UserBatch:
    """The `batch` that a user-defined objective receives: entropies and the call's values per token as attributes."""

    def __init__(self, tokens: TokenInputs, entropy: Tensor, objective: str):
        self._values = tokens.named() | {"entropy": entropy}
        self._objective = objective

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._values:
            return self._values[name]
        arguments = [item.name for item in fields(TokenInputs) if item.name != "columns"]
        if name in arguments:
            raise ValueError(f"{name}: objective {self._objective!r} reads it, but the call was not given it")
        readable = ", ".join(["entropy", *arguments, *(name for name in self._values if name not in arguments)])
        raise AttributeError(f"batch.{name}: objective {self._objective!r} can read {readable}, or a name in columns=")
