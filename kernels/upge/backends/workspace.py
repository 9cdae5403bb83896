"""What a chunked backend provides: a workspace that computes one chunk of tokens at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from ..inputs import HeadInputs, NeededGradients, TokenInputs
from ..token_loss import Coefficients, LossFormula, TokenLosses

Columns = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Statistics:
    """Per token, (n,): log pi(y), the entropy, log sum_j exp(z_j), the anchor a and log sum_j exp(z_j - a), float32.

    top1 is bool: whether no other entry has a larger logit than the target. Where the vocabulary is sharded, all are of
    the whole vocabulary, but each rank has its own anchor.
    """

    logprobs: Tensor
    entropy: Tensor
    lse: Tensor
    anchor: Tensor
    log_total: Tensor
    top1: Tensor

    def spread(self, rows: Tensor, count: int) -> Columns:
        """Logprobs, entropy, lse (float32) and top1, each (count,): those of self at the positions `rows`, else 0."""

        def column(values: Tensor) -> Tensor:
            return values.new_zeros(count).index_copy(0, rows, values)

        return (
            column(self.logprobs.float()),
            column(self.entropy.float()),
            column(self.lse.float()),
            column(self.top1),
        )

    def at(self, rows: Tensor | slice) -> Statistics:
        return Statistics(*(getattr(self, field.name)[rows] for field in fields(Statistics)))

    @staticmethod
    def cat(parts: list[Statistics], device: torch.device) -> Statistics:
        """The tokens of `parts` (maybe none), in order."""
        if not parts:
            empty = torch.empty(0, dtype=torch.float32, device=device)
            return Statistics(empty, empty, empty, empty, empty, empty.bool())
        return Statistics(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Statistics)))


class WeightSum(Protocol):
    """The sum of dW over chunks, in a form of the backend's own."""

    def finish(self, factor: Tensor | None, dtype: torch.dtype, keep: bool) -> Tensor:
        """factor () (None: 1) times the sum, rounded once to `dtype`. Unless `keep`, it may reuse the sum's memory."""


@dataclass
class Gradients:
    """The sums of the gradients of the head's inputs. None where a gradient is not needed.

    hidden: (N, D), each row written once, in its dtype; fp32 for fp16, since a loss scale has to multiply it before it
            is rounded to so small a range.
    weight: (V, D) fp32, or the backend's own sum.
    bias:   (V,) fp32.
    """

    hidden: Tensor | None
    weight: Tensor | WeightSum | None
    bias: Tensor | None

    def finish(
        self, factor: Tensor | None, dtypes: Sequence[torch.dtype | None], keep: bool = False
    ) -> list[Tensor | None]:
        """factor () (None: 1) times each gradient, in its dtype. Unless `keep`, in place where the dtype allows it."""
        sums = (self.hidden, self.weight, self.bias)
        return [
            None if total is None or dtype is None else _finish(total, factor, dtype, keep)
            for total, dtype in zip(sums, dtypes, strict=True)
        ]


def _finish(total: Tensor | WeightSum, factor: Tensor | None, dtype: torch.dtype, keep: bool) -> Tensor:
    if not isinstance(total, Tensor):
        return total.finish(factor, dtype, keep)
    if factor is None:
        return total.to(dtype)
    if keep:
        return (total * factor).to(dtype)
    return total.mul_(factor).to(dtype)


class Workspace(ABC):
    """The memory of one call: one chunk of logits, reused for every chunk, and the sums of the gradients.

    `forward` leaves in the workspace what `backward` needs for the same tokens, so the two are called in pairs.
    """

    def __init__(self, head: HeadInputs, needs: NeededGradients, chunk_rows: int):
        self.head = head
        self.needs = needs
        self.chunk_rows = chunk_rows
        hidden = head.hidden
        hidden_dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        self.gradients = Gradients(
            torch.zeros(hidden.shape, dtype=hidden_dtype, device=hidden.device) if needs.hidden else None,
            self.weight_sum() if needs.weight else None,
            torch.zeros(head.vocabulary_size, dtype=torch.float32, device=hidden.device) if needs.bias else None,
        )

    def weight_sum(self) -> Tensor | WeightSum:
        """Zeros to which each chunk's dW is added."""
        weight = self.head.weight
        return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)

    @abstractmethod
    def forward(self, rows: Tensor, keep: bool) -> Statistics:
        """The statistics of the tokens at the positions `rows` (1 <= n <= chunk_rows).

        keep: whether `backward` follows and needs the chunk's logits.
        """

    @abstractmethod
    def backward(self, rows: Tensor, statistics: Statistics, coefficients: Coefficients) -> None:
        """Add the gradients of the tokens at `rows`."""

    def losses(self, formula: LossFormula, tokens: TokenInputs, rows: Tensor, statistics: Statistics) -> TokenLosses:
        """The losses of the tokens at the positions `rows`."""
        return formula.losses(tokens.at(rows), statistics.logprobs, statistics.entropy, statistics.lse)

    def chunks(self, rows: Tensor) -> Sequence[Tensor]:
        """The positions `rows` in pieces of at most `chunk_rows`."""
        return rows.split(self.chunk_rows) if rows.numel() else ()


MakeWorkspace = Callable[[HeadInputs, NeededGradients], Workspace]
