"""The loss of each token and its coefficients, from the token's log-probability, entropy and log-sum-exp.

Everything here works on (n,) float32 vectors, so its cost is small compared with the head's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .importance import ImportanceRatio
from .inputs import TokenInputs
from .objective import Objective
from .regularizers import kl_penalty
from .sequences import sequence_mean
from .surrogate import SurrogateLoss, function_loss, preset_loss


@dataclass(frozen=True)
class Coefficients:
    """The gradient of the loss with respect to the statistics of each token, (n,) float32. None stands for zeros.

    g = d loss / d logprob, q = d loss / d entropy, k = d loss / d lse. With p the softmax of a token,

        d loss / d z_j = g (1[j = y] - p_j) - q p_j (log p_j + H) + k p_j
    """

    g: Tensor
    q: Tensor | None = None
    k: Tensor | None = None

    def at(self, rows: Tensor | slice) -> Coefficients:
        return self.map(lambda vector: vector[rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> Coefficients:
        """A copy with `change` applied to every tensor."""
        q, k = (None if vector is None else change(vector) for vector in (self.q, self.k))
        return Coefficients(change(self.g), q, k)

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
        """The tokens of `parts` (at least one), in order; without q and k, which only their gradients needed."""
        return TokenLosses(
            torch.cat([part.loss for part in parts]),
            Coefficients(torch.cat([part.coefficients.g for part in parts])),
            torch.cat([part.ratio for part in parts]),
            torch.cat([part.stable for part in parts]),
        )


@dataclass(frozen=True)
class LossFormula:
    """What is computed from the tokens of one call: their objectives, and the forms of the ratios and the KL penalty.

    evaluate: "needed", or "all" to compute the numbers of tokens without a gradient too.
    """

    objectives: tuple[Objective, ...]
    importance: ImportanceRatio = field(default_factory=ImportanceRatio)
    kl: str = "k3"
    max_log_ratio: float = 20.0
    evaluate: str = "needed"

    @property
    def has_functions(self) -> bool:
        return any(objective.function is not None for objective in self.objectives)

    @property
    def needs_all_tokens(self) -> bool:
        return any(objective.needs_all_tokens for objective in self.objectives)

    def losses(self, tokens: TokenInputs, logprobs: Tensor, entropy: Tensor, lse: Tensor) -> TokenLosses:
        """The losses of n tokens. logprobs, entropy and lse are (n,) float32, detached."""
        loss, g, ratio = (torch.zeros_like(logprobs) for _ in range(3))
        stable = torch.ones_like(logprobs, dtype=torch.bool)
        q: Tensor | None = None
        for number, objective in enumerate(self.objectives):
            rows = self._followers(tokens, number)
            part = tokens.at(rows)
            values = self._policy_loss(objective, part, logprobs[rows], entropy[rows])
            loss[rows], g[rows], ratio[rows], stable[rows] = values.loss, values.g, values.ratio, values.stable
            if values.q is not None:
                q = torch.zeros_like(logprobs) if q is None else q
                q[rows] = values.q
            if tokens.kl_coef is not None:
                penalty, slope = kl_penalty(self.kl, objective, part, logprobs[rows], self.max_log_ratio)
                loss[rows] += penalty
                g[rows] += slope
        k: Tensor | None = None
        if tokens.entropy_coef is not None:
            bonus = -tokens.weights * tokens.entropy_coef
            loss = loss + bonus * entropy
            q = bonus if q is None else q + bonus
        if tokens.lse_coef is not None:
            z_loss = tokens.weights * tokens.lse_coef
            loss = loss + z_loss * lse.square()
            k = 2 * z_loss * lse
        return TokenLosses(loss, Coefficients(g, q, k), ratio, stable)

    def no_losses(self, device: torch.device) -> TokenLosses:
        """The losses of an empty batch."""
        empty = torch.empty(0, dtype=torch.float32, device=device)
        return TokenLosses(empty, Coefficients(empty), empty, empty.bool())

    def tokens_with_gradient(self, tokens: TokenInputs) -> Tensor:
        """For each token, (N,) bool, whether it can have a gradient. The others need no logits.

        A counted token is left out where its weight is 0, or where its advantage or its importance ratio is 0 and it
        has neither an entropy bonus nor a KL penalty nor a z-loss. Under a sequence-level objective a sequence is left
        out only as a whole.
        """
        keep = torch.ones_like(tokens.weights, dtype=torch.bool)
        if tokens.importance is not None:
            keep = tokens.importance != 0
        for number, objective in enumerate(self.objectives):
            if objective.needs_advantages:
                assert tokens.advantages is not None
                rows = self._followers(tokens, number)
                keep[rows] &= tokens.advantages[rows] != 0
        for coefficient in (tokens.entropy_coef, tokens.kl_coef, tokens.lse_coef):
            if coefficient is not None:
                keep |= coefficient != 0
        keep &= tokens.weights != 0
        for number, objective in enumerate(self.objectives):
            if not objective.needs_all_tokens:
                continue
            rows = self._followers(tokens, number)
            counted = rows[tokens.mask[rows]]
            if objective.needs_sequence_ids:
                assert tokens.sequence_ids is not None
                keep[counted] = sequence_mean(keep[counted].double(), tokens.sequence_ids[counted]) > 0
            else:
                keep[counted] = True
        return keep & tokens.mask

    def _policy_loss(
        self, objective: Objective, tokens: TokenInputs, logprobs: Tensor, entropy: Tensor
    ) -> SurrogateLoss:
        if objective.function is not None:
            return function_loss(objective, tokens, logprobs, entropy)
        return preset_loss(objective, tokens, logprobs, self.max_log_ratio)

    def _followers(self, tokens: TokenInputs, number: int) -> Tensor:
        """Positions of the tokens that follow objective `number`."""
        if len(self.objectives) == 1:
            return torch.arange(tokens.weights.shape[0], device=tokens.weights.device)
        assert tokens.objective_index is not None
        return (tokens.objective_index == number).nonzero().squeeze(1)
