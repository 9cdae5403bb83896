"""The truncated importance ratio: what corrects for an inference engine that samples from slightly other probabilities.

With old the trainer's log-probabilities of the sampled tokens and rollout those of the engine, the ratio of a token is
exp(old - rollout), and that of a sequence exp(sum of old - rollout over its counted tokens). It multiplies the policy's
loss. (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; Liu et al. 2025, "When
speed kills stability", for sequences and the mask.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sequences import sequence_sum

LEVELS = ("token", "sequence")
MODES = ("clip", "mask")


@dataclass(frozen=True)
class ImportanceRatio:
    """How the ratio is formed and truncated.

    level: "token" or "sequence". mode: "clip" bounds the ratio to [low, high]; "mask" makes it 0 outside.
    low, high: the bounds; None: no lower one.
    """

    level: str = "token"
    mode: str = "clip"
    high: float = 2.0
    low: float | None = None

    def of(self, old: Tensor, rollout: Tensor, sequence_ids: Tensor | None, mask: Tensor) -> Tensor:
        """The truncated ratio, (N,) float32. Where a token does not count, it is 1."""
        log_ratio = (old - rollout).masked_fill(~mask, 0.0)
        if self.level == "sequence":
            assert sequence_ids is not None
            log_ratio = sequence_sum(log_ratio.double(), sequence_ids)
        ratio = log_ratio.exp().float()
        low = 0.0 if self.low is None else self.low
        if self.mode == "clip":
            ratio = ratio.clamp(low, self.high)
        else:
            ratio = torch.where((ratio >= low) & (ratio <= self.high), ratio, 0.0)
        return ratio.masked_fill(~mask, 1.0)
