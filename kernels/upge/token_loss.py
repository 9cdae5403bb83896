"""The loss of each token and its coefficient g = d loss / d log pi, from the token's log-probability.

Everything here works on (n,) float32 vectors, so its cost is small compared with the head's. The ratio r = pi / pi_ref
saturates at e^80, below the largest float32, so that a token whose stabilization mask is 0 has g = 0, not 0 * inf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .inputs import TokenInputs, UserBatch
from .objective import Clip, Objective, Shaping, SoftGate, WeightClip

MAX_LOG_RATIO = 80.0


@dataclass(frozen=True)
class Coefficients:
    """The gradient of the loss with respect to the statistics of each token, (n,) float32. None stands for zeros.

    g = d loss / d logprob, q = d loss / d entropy, k = d loss / d lse. With p the softmax of a token,

        d loss / d z_j = g (1[j = y] - p_j) - q p_j (log p_j + H) + k p_j
    """

    g: Tensor
    q: Tensor | None = None
    k: Tensor | None = None

    def at(self, rows: Tensor) -> Coefficients:
        return self.map(lambda vector: vector.index_select(0, rows))

    def map(self, change: Callable[[Tensor], Tensor]) -> Coefficients:
        """A copy with `change` applied to every tensor."""
        return Coefficients(*(None if vector is None else change(vector) for vector in (self.g, self.q, self.k)))

    def nonzero(self) -> Tensor:
        """Positions of the tokens that have a gradient."""
        has_gradient = self.g != 0
        for vector in (self.q, self.k):
            if vector is not None:
                has_gradient = has_gradient | (vector != 0)
        return has_gradient.nonzero().squeeze(1)


@dataclass(frozen=True)
class TokenLosses:
    """Per token, each (n,), detached.

    loss: weighted. coefficients: its gradient. ratio: r. stable: whether the stabilization mask left the token
    unchanged.
    """

    loss: Tensor
    coefficients: Coefficients
    ratio: Tensor
    stable: Tensor

    @staticmethod
    def cat(parts: Sequence[TokenLosses]) -> TokenLosses:
        """The tokens of `parts` (at least one), in order."""
        columns: dict[str, Tensor | None] = {}
        for name in ("g", "q", "k"):
            vectors = [getattr(part.coefficients, name) for part in parts]
            columns[name] = None if vectors[0] is None else torch.cat(vectors)
        return TokenLosses(
            torch.cat([part.loss for part in parts]),
            Coefficients(**columns),
            torch.cat([part.ratio for part in parts]),
            torch.cat([part.stable for part in parts]),
        )


@dataclass(frozen=True)
class LossFormula:
    """The objectives of one call, and the entropy bonus and KL penalty that every counted token gets."""

    objectives: tuple[Objective, ...]
    entropy_coef: float = 0.0
    kl_coef: float = 0.0

    @property
    def has_functions(self) -> bool:
        return any(objective.function is not None for objective in self.objectives)

    @property
    def needs_all_tokens(self) -> bool:
        return any(objective.needs_all_tokens for objective in self.objectives)

    def losses(self, tokens: TokenInputs, logprobs: Tensor, entropy: Tensor) -> TokenLosses:
        """The losses of n tokens. logprobs and entropy are (n,) float32, detached."""
        loss, coefficient, ratio = (torch.zeros_like(logprobs) for _ in range(3))
        stable = torch.ones_like(logprobs, dtype=torch.bool)
        for number, objective in enumerate(self.objectives):
            rows = self._followers(tokens, number)
            compute = _preset_losses if objective.function is None else _function_losses
            values = compute(objective, tokens.at(rows), logprobs[rows])
            for total, value in zip((loss, coefficient, ratio, stable), values, strict=True):
                total[rows] = value
        entropy_coefficient = None
        if self.entropy_coef:
            entropy_coefficient = -self.entropy_coef * tokens.weights
            loss = loss + entropy_coefficient * entropy
        if self.kl_coef:
            # k3 = e^d - d - 1 with d = ref_logprobs - l; d k3 / d l = -(e^d - 1).
            assert tokens.ref_logprobs is not None
            gap = (tokens.ref_logprobs - logprobs).clamp(max=MAX_LOG_RATIO)
            loss = loss + tokens.weights * self.kl_coef * (torch.expm1(gap.double()) - gap).float()
            coefficient = coefficient - tokens.weights * self.kl_coef * torch.expm1(gap)
        return TokenLosses(loss, Coefficients(coefficient, entropy_coefficient), ratio, stable)

    def no_losses(self, device: torch.device) -> TokenLosses:
        """The losses of an empty batch."""
        empty = torch.empty(0, dtype=torch.float32, device=device)
        return TokenLosses(empty, Coefficients(empty, empty if self.entropy_coef else None), empty, empty.bool())

    def tokens_with_gradient(self, tokens: TokenInputs) -> Tensor:
        """Positions (n,) of the tokens that can have a gradient. The others need no logits.

        A counted token is left out where its weight is 0, or where its advantage is 0 and there is neither an entropy
        bonus nor a KL penalty. Under a sequence-level objective a sequence is left out only as a whole.
        """
        keep = tokens.weights != 0
        for number, objective in enumerate(self.objectives):
            rows = self._followers(tokens, number)
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

    def _followers(self, tokens: TokenInputs, number: int) -> Tensor:
        """Positions of the tokens that follow objective `number`."""
        if len(self.objectives) == 1 or tokens.objective_index is None:
            count = tokens.weights.shape[0] if number == 0 else 0
            return torch.arange(count, device=tokens.weights.device)
        return (tokens.objective_index == number).nonzero().squeeze(1)


def sequence_mean(values: Tensor, ids: Tensor) -> Tensor:
    """For each token, the mean of the float64 `values` of the tokens with its id. The order of summation is fixed."""
    order = torch.argsort(ids, stable=True)
    lengths = torch.unique_consecutive(ids[order], return_counts=True)[1]
    if lengths.numel() == 0:
        return values
    means = torch.segment_reduce(values[order], "sum", lengths=lengths) / lengths
    return torch.empty_like(values).index_copy_(0, order, means.repeat_interleave(lengths))


def _preset_losses(
    objective: Objective, tokens: TokenInputs, logprobs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted loss, g, r and stable of the tokens that follow an objective made of the four parts."""
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
        # log s is the mean of log r over the sequence. So each token's g is the mean of -w slope A s over it.
        assert tokens.sequence_ids is not None
        coefficient = sequence_mean(coefficient.double(), tokens.sequence_ids).float()
    return loss, coefficient, ratio, stable


def _ratio(objective: Objective, tokens: TokenInputs, logprobs: Tensor) -> Tensor:
    """r = pi / pi_ref."""
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
    """What the stabilization mask makes of r (the gain), d gain / d r (the slope), and stable.

    The surrogate is -gain * A, or -sg(gain) * A * l.
    """
    mask = objective.mask
    unchanged = torch.ones_like(ratio, dtype=torch.bool)
    if isinstance(mask, Clip):
        too_high = (advantages > 0) & (ratio > 1 + mask.high)
        too_low = (advantages < 0) & (ratio < 1 - mask.low)
        gain = torch.where(too_high, 1 + mask.high, torch.where(too_low, 1 - mask.low, ratio))
        stable = ~(too_high | too_low)
        if mask.dual is not None:
            above_dual = (advantages < 0) & (ratio > mask.dual)
            gain = torch.where(above_dual, mask.dual, gain)
            stable &= ~above_dual
        return gain, stable.float(), stable
    if isinstance(mask, WeightClip):
        stable = ratio <= 1 + mask.high
        if mask.drop:
            stable |= advantages <= 0
            return ratio * stable, stable.float(), stable
        return ratio.clamp(max=1 + mask.high), stable.float(), stable
    if isinstance(mask, Shaping):
        return ratio / (ratio + mask.gamma), mask.gamma / (ratio + mask.gamma).square(), unchanged
    if isinstance(mask, SoftGate):
        tau = torch.full_like(advantages, mask.tau_negative).masked_fill(advantages > 0, mask.tau_positive)
        scaled = tau * (ratio - 1)
        return 4 / tau * torch.sigmoid(scaled), 4 * torch.sigmoid(scaled) * torch.sigmoid(-scaled), unchanged
    return ratio, torch.ones_like(ratio), unchanged


def _function_losses(
    objective: Objective, tokens: TokenInputs, logprobs: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for a user-defined function, by autograd on (n,) vectors. r and stable are reported as 1."""
    ones = torch.ones_like(logprobs)
    if logprobs.numel() == 0:
        return ones, ones, ones, ones.bool()
    # inference_mode(False) also turns gradients on. Tensors made in inference mode cannot have any, so copy them.
    with torch.inference_mode(False):
        tokens, leaf = tokens.map(torch.clone), logprobs.detach().clone().requires_grad_()
        loss = tokens.weights * call_function(objective, tokens, leaf).float()
        (coefficient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), coefficient, ones, ones.bool()


def call_function(objective: Objective, tokens: TokenInputs, logprobs: Tensor) -> Tensor:
    """The per-token loss of a user-defined objective, (n,). Raises where the function returns something else."""
    assert objective.function is not None
    per_token: object = objective.function(logprobs, UserBatch(tokens, objective.name))
    required = f"objective {objective.name!r}: its function must return one loss per token,"
    if not isinstance(per_token, Tensor):
        raise TypeError(f"{required} a tensor of shape {tuple(logprobs.shape)}; got {type(per_token).__name__}")
    if per_token.shape != logprobs.shape:
        raise ValueError(f"{required} of shape {tuple(logprobs.shape)}; got {tuple(per_token.shape)}")
    if not per_token.requires_grad:
        raise ValueError(f"{required} that depends on logprobs; got one that does not (was it detached?)")
    return per_token
