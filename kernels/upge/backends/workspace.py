"""What a chunked backend has to do, and the passes over the tokens that are the same for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..coefficient import TokenLoss, TokenStep
from ..inputs import Head, Needs, Tokens

Result = TypeVar("Result")


@dataclass(frozen=True)
class Forward:
    """Per row (n,), fp32: log pi(y), entropy, the anchor, and log sum_j exp(z_j - anchor)."""

    logprobs: Tensor
    entropy: Tensor
    anchor: Tensor
    log_total: Tensor

    def at(self, rows: Tensor | slice) -> Forward:
        return Forward(*(getattr(self, f.name)[rows] for f in fields(self)))

    @staticmethod
    def cat(parts: list[Forward], device: torch.device) -> Forward:
        empty = torch.empty(0, dtype=torch.float32, device=device)
        return Forward(*(torch.cat([empty, *(getattr(p, f.name) for p in parts)]) for f in fields(Forward)))


class Sum(Protocol):
    """A gradient summed in a form of a backend's own."""

    def finish(self, factor: Tensor | None, dtype: torch.dtype, keep: bool) -> Tensor: ...


@dataclass
class Gradients:
    """Gradients of the head's inputs, summed; None where nobody needs them.

    hidden: (N, D), each row written once: in its dtype, but fp32 for fp16, whose range a loss scale has to meet first.
    weight: (V, D) fp32, or a backend's own sum. bias: (V,) fp32.
    """

    hidden: Tensor | None
    weight: Tensor | Sum | None
    bias: Tensor | None

    def finish(
        self, factor: Tensor | None, dtypes: Sequence[torch.dtype | None], keep: bool = False
    ) -> list[Tensor | None]:
        """factor () (None: 1) times each gradient in its dtype. Unless `keep`, in its own memory where that fits."""

        def one(gradient: Tensor | Sum, dtype: torch.dtype) -> Tensor:
            if not isinstance(gradient, Tensor):
                return gradient.finish(factor, dtype, keep)
            if factor is None:
                return gradient.to(dtype)
            return (gradient * factor if keep else gradient.mul_(factor)).to(dtype)

        sums = (self.hidden, self.weight, self.bias)
        return [None if x is None or dtype is None else one(x, dtype) for x, dtype in zip(sums, dtypes, strict=True)]


class Workspace(ABC):
    """The memory of one call: one chunk of logits, reused for every chunk, and the gradients summed over them.

    `forward` leaves in the workspace what `backward` of the same rows needs, so the two come in pairs.
    """

    def __init__(self, head: Head, needs: Needs, chunk_rows: int):
        self.head = head
        self.needs = needs
        self.chunk_rows = chunk_rows
        h = head.hidden
        wide = torch.float32 if h.dtype == torch.float16 else h.dtype
        self.gradients = Gradients(
            torch.zeros(h.shape, dtype=wide, device=h.device) if needs.hidden else None,
            self.weight_sum() if needs.weight else None,
            torch.zeros(head.vocabulary, dtype=torch.float32, device=h.device) if needs.bias else None,
        )

    def weight_sum(self) -> Tensor | Sum:
        """Zeros that the chunks' dW are added to."""
        weight = self.head.weight
        return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)

    @abstractmethod
    def forward(self, rows: Tensor, keep: bool) -> Forward:
        """The numbers of the positions `rows` (1 <= n <= chunk_rows); `keep` what backward needs."""

    @abstractmethod
    def backward(self, rows: Tensor, forward: Forward, g: Tensor, q: Tensor | None) -> None:
        """Add the gradients of the kept rows for g = d loss / d logprob and q = d loss / d entropy (None: 0).

        With p the softmax of a row, d loss / d z_j = g (1[j = y] - p_j) - q p_j (log p_j + H).
        """

    def losses(self, step: TokenStep, tokens: Tokens, rows: Tensor, forward: Forward) -> TokenLoss:
        """The per-token step on the positions `rows`."""
        return step(tokens.at(rows), forward.logprobs, forward.entropy)

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        return iter(rows.split(self.chunk_rows)) if rows.numel() else iter(())


def on_its_device(function: Callable[..., Result]) -> Callable[..., Result]:
    """Kernels are launched on the current device: make it the head's (second argument) for the call."""

    @wraps(function)
    def run(kind: type[Workspace], head: Head, *rest: Any) -> Result:
        with torch.cuda.device_of(head.hidden):
            return function(kind, head, *rest)

    return run


@on_its_device
def logprobs(kind: type[Workspace], head: Head) -> tuple[Tensor, Tensor]:
    """log pi(y) and entropy of every row, (N,) fp32. 2 NVD."""
    work = kind(head, Needs())  # type: ignore[call-arg]
    rows = torch.arange(head.tokens, device=head.hidden.device)
    whole = Forward.cat([work.forward(chunk, keep=False) for chunk in work.chunks(rows)], head.hidden.device)
    return whole.logprobs, whole.entropy


@on_its_device
def logprobs_backward(kind: type[Workspace], head: Head, needs: Needs, g: Tensor, q: Tensor | None) -> Gradients:
    """Gradients for upstream g = d loss / d logprobs and q = d loss / d entropy, each (N,). Makes the logits again."""
    work = kind(head, needs)  # type: ignore[call-arg]
    for chunk in work.chunks(_moving(g, q)):
        work.backward(chunk, work.forward(chunk, keep=True), g[chunk], None if q is None else q[chunk])
    return work.gradients


@on_its_device
def policy_loss(
    kind: type[Workspace], head: Head, tokens: Tokens, step: TokenStep, rows: Tensor, needs: Needs
) -> tuple[Forward, TokenLoss, Gradients]:
    """Numbers, losses and gradients of the positions `rows` (n,).

    One pass, 6 NVD. Where coefficients couple tokens, a first pass gets every log-probability and a second one, over
    the tokens whose coefficient is not 0, the gradients: 8 NVD at most.
    """
    work = kind(head, needs)  # type: ignore[call-arg]
    if step.needs_all_tokens:
        return _two_passes(work, tokens, step, rows)
    forwards: list[Forward] = []
    losses: list[TokenLoss] = []
    for chunk in work.chunks(rows):
        forwards.append(work.forward(chunk, keep=bool(needs)))
        losses.append(work.losses(step, tokens, chunk, forwards[-1]))
        if needs:
            work.backward(chunk, forwards[-1], losses[-1].coefficient, losses[-1].entropy_slope)
    forward = Forward.cat(forwards, rows.device)
    return forward, TokenLoss.cat(losses) if losses else step.none(rows.device), work.gradients


def _two_passes(work: Workspace, tokens: Tokens, step: TokenStep, rows: Tensor) -> tuple[Forward, TokenLoss, Gradients]:
    forward = Forward.cat([work.forward(chunk, keep=False) for chunk in work.chunks(rows)], rows.device)
    loss = step(tokens.at(rows), forward.logprobs, forward.entropy)
    if work.needs:
        g, q = loss.coefficient, loss.entropy_slope
        for part in work.chunks(_moving(g, q)):
            chunk = rows[part]
            work.backward(chunk, work.forward(chunk, keep=True), g[part], None if q is None else q[part])
    return forward, loss, work.gradients


def _moving(g: Tensor, q: Tensor | None) -> Tensor:
    """Positions of the tokens that have a gradient."""
    return (g != 0 if q is None else (g != 0) | (q != 0)).nonzero().squeeze(1)
