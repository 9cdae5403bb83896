"""The per-token step: from log-probabilities to the loss of each token and its coefficient g = d loss / d logprob.

Everything here works on (n,) float32 vectors, so it costs nothing beside the head. The ratio r = pi / pi_ref saturates
at e^80, below the end of float32: a token whose mask is 0 there has g = 0 and not 0 * inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .inputs import Tokens, TokenView
from .objective import Clip, Objective, Shaping, SoftGate, WeightClip

MAX_LOG_RATIO = 80.0


@dataclass(frozen=True)
class TokenLoss:
    """Per token, each (n,): the weighted loss, g, r, whether the mask left it alone, and d loss / d entropy if any."""

    loss: Tensor
    coefficient: Tensor
    ratio: Tensor
    stable: Tensor
    entropy_slope: Tensor | None = None

    @staticmethod
    def cat(parts: Sequence[TokenLoss]) -> TokenLoss:
        """The tokens of `parts` (at least one) in order."""
        columns: dict[str, Any] = {f.name: [getattr(p, f.name) for p in parts] for f in fields(TokenLoss)}
        return replace(parts[0], **{name: torch.cat(c) for name, c in columns.items() if c[0] is not None})


@dataclass(frozen=True)
class TokenStep:
    """The objectives of one call and the two regularisers that every counted token pays."""

    objectives: tuple[Objective, ...]
    entropy_coef: float = 0.0
    kl_coef: float = 0.0

    @property
    def needs_all_tokens(self) -> bool:
        return any(o.needs_all_tokens for o in self.objectives)

    def __call__(self, tokens: Tokens, logprobs: Tensor, entropy: Tensor) -> TokenLoss:
        """tokens: n rows; logprobs, entropy: (n,) float32, detached."""
        loss, coefficient, ratio = (torch.zeros_like(logprobs) for _ in range(3))
        stable = torch.ones_like(logprobs, dtype=torch.bool)
        for number, objective in enumerate(self.objectives):
            rows = self._rows(tokens, number)
            part = _user if objective.function is not None else _preset
            values = part(objective, tokens.at(rows), logprobs[rows])
            for whole, value in zip((loss, coefficient, ratio, stable), values, strict=True):
                whole[rows] = value
        entropy_slope = None
        if self.entropy_coef:
            entropy_slope = -self.entropy_coef * tokens.weights
            loss = loss + entropy_slope * entropy
        if self.kl_coef:
            assert tokens.ref_logprobs is not None
            gap = (tokens.ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
            loss = loss + tokens.weights * self.kl_coef * (torch.expm1(gap.double()) - gap).float()
            coefficient = coefficient - tokens.weights * self.kl_coef * torch.expm1(gap)
        return TokenLoss(loss, coefficient, ratio, stable, entropy_slope)

    def none(self, device: torch.device) -> TokenLoss:
        """The losses of no tokens at all."""
        empty = torch.empty(0, dtype=torch.float32, device=device)
        return TokenLoss(empty, empty, empty, empty.bool(), empty if self.entropy_coef else None)

    def live(self, tokens: Tokens) -> Tensor:
        """Positions (n,) of the tokens that can have a gradient; the others need no logits at all.

        A counted token is dropped where its weight is 0, or its advantage is and no regulariser is on; one of a
        sequence-level objective only together with its whole sequence.
        """
        weighted = tokens.weights != 0
        keep = weighted.clone()
        for number, objective in enumerate(self.objectives):
            rows = self._rows(tokens, number)
            if objective.needs_advantages and not (self.entropy_coef or self.kl_coef):
                assert tokens.advantages is not None
                keep[rows] &= tokens.advantages[rows] != 0
            if objective.needs_sequence_ids:
                assert tokens.sequence_ids is not None
                counted = rows if tokens.mask is None else rows[tokens.mask[rows]]
                keep[counted] = sequence_mean(keep[counted].double(), tokens.sequence_ids[counted]) > 0
            elif objective.needs_all_tokens:
                keep[rows] = True
        if tokens.mask is not None:
            keep &= tokens.mask
        return keep.nonzero().squeeze(1)

    def _rows(self, tokens: Tokens, number: int) -> Tensor:
        if len(self.objectives) == 1 or tokens.objective_index is None:
            count = tokens.weights.shape[0] if number == 0 else 0
            return torch.arange(count, device=tokens.weights.device)
        return (tokens.objective_index == number).nonzero().squeeze(1)


def sequence_mean(values: Tensor, ids: Tensor) -> Tensor:
    """Each row's mean of float64 `values` over the rows that share its id; a fixed order of summation on any device."""
    order = torch.argsort(ids, stable=True)
    lengths = torch.unique_consecutive(ids[order], return_counts=True)[1]
    if lengths.numel() == 0:
        return values
    means = torch.segment_reduce(values[order], "sum", lengths=lengths) / lengths
    return torch.empty_like(values).index_copy_(0, order, means.repeat_interleave(lengths))


def _preset(objective: Objective, tokens: Tokens, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted loss, g, r and the mask of the tokens that follow one preset."""
    ratio = _ratio(objective, tokens, logprobs)
    if objective.advantage == "one":
        advantages = torch.ones_like(logprobs)
    else:
        assert tokens.advantages is not None
        advantages = tokens.advantages
    gain, slope, stable = _gain(objective, ratio, advantages)
    if objective.likelihood == "log":
        loss, coefficient = -gain * advantages * logprobs, -gain * advantages
    else:
        loss, coefficient = -gain * advantages, -slope * advantages * ratio
    loss, coefficient = tokens.weights * loss, tokens.weights * coefficient
    if objective.reference == "sequence":
        # s depends on every token of the sequence alike: each gets the mean of what all of them pull on it.
        assert tokens.sequence_ids is not None
        coefficient = sequence_mean(coefficient.double(), tokens.sequence_ids).float()
    return loss, coefficient, ratio, stable


def _ratio(objective: Objective, tokens: Tokens, logprobs: Tensor) -> Tensor:
    if objective.reference == "policy":
        return torch.ones_like(logprobs)
    if objective.reference == "one":
        return logprobs.exp()
    assert tokens.old_logprobs is not None
    log_ratio = logprobs - tokens.old_logprobs
    if objective.reference == "sequence":
        assert tokens.sequence_ids is not None
        log_ratio = sequence_mean(log_ratio.double(), tokens.sequence_ids).float()
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def _gain(objective: Objective, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the mask makes of r: the surrogate is gain * A (or gain * A * l), d gain / d r is the slope."""
    mask = objective.mask
    everywhere = torch.ones_like(ratio, dtype=torch.bool)
    if isinstance(mask, Clip):
        over = (advantages > 0) & (ratio > 1 + mask.high)
        under = (advantages < 0) & (ratio < 1 - mask.low)
        gain = torch.where(over, 1 + mask.high, torch.where(under, 1 - mask.low, ratio))
        stable = ~(over | under)
        if mask.dual is not None:
            beyond = (advantages < 0) & (ratio > mask.dual)
            gain = torch.where(beyond, mask.dual, gain)
            stable &= ~beyond
        return gain, stable.float(), stable
    if isinstance(mask, WeightClip):
        stable = ratio <= 1 + mask.high
        if mask.drop:
            stable |= advantages <= 0
        return ratio * stable if mask.drop else ratio.clamp(max=1 + mask.high), stable.float(), stable
    if isinstance(mask, Shaping):
        return ratio / (ratio + mask.gamma), mask.gamma / (ratio + mask.gamma).square(), everywhere
    if isinstance(mask, SoftGate):
        tau = torch.full_like(advantages, mask.tau_negative).masked_fill(advantages > 0, mask.tau_positive)
        lean = tau * (ratio - 1)
        return 4 / tau * torch.sigmoid(lean), 4 * torch.sigmoid(lean) * torch.sigmoid(-lean), everywhere
    return ratio, torch.ones_like(ratio), everywhere


def _user(objective: Objective, tokens: Tokens, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for a user's function, by autograd on (n,) vectors; r and the mask are reported as 1."""
    assert objective.function is not None
    ones = torch.ones_like(logprobs)
    if logprobs.numel() == 0:
        return ones, ones, ones, ones.bool()
    # inference_mode(False) turns gradients on as well; what was made in inference mode has to be copied for them.
    with torch.inference_mode(False):
        tokens, leaf = tokens.map(torch.clone), logprobs.detach().clone().requires_grad_()
        loss = tokens.weights * user_loss(objective, tokens, leaf).float()
        (coefficient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), coefficient, ones, ones.bool()


def user_loss(objective: Objective, tokens: Tokens, logprobs: Tensor) -> Tensor:
    """Call a user's function and check what it returns."""
    assert objective.function is not None
    per_token = objective.function(logprobs, TokenView(tokens, objective.name))
    what = f"objective {objective.name!r}: its function must return one loss per token,"
    if not isinstance(per_token, Tensor):
        raise TypeError(f"{what} a tensor of shape {tuple(logprobs.shape)}; got {type(per_token).__name__}")
    if per_token.shape != logprobs.shape:
        raise ValueError(f"{what} of shape {tuple(logprobs.shape)}; got {tuple(per_token.shape)}")
    if not per_token.requires_grad:
        raise ValueError(f"{what} that depends on logprobs; got one that does not (was it detached?)")
    return per_token
