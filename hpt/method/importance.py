"""Truncated importance sampling: rollouts come from the engine's pi, gradients are taken of the trainer's.

The two differ by rounding and by kernels even where they have the same weights. The ratio pi_old / pi_engine, with
pi_old the trainer's policy that the engine was given, corrects for it (Yao et al., "Your Efficient RL Framework
Secretly Brings You Off-Policy RL Training", 2025); cut off, so that one unlikely token cannot rule the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hpt.config.schema import LossConfig
from hpt.method.rows import Row


def corrected(row: Row, settings: LossConfig) -> Row:
    """The row of a rollout with the importance of its tokens; other rows as they are. It needs old_logprobs."""
    if row.old_logprobs is None or row.rollout_logprobs is None:
        return row
    return replace(row, importance=importance_weights(row.old_logprobs, row.rollout_logprobs, settings))


def importance_weights(old: Sequence[float], engine: Sequence[float], settings: LossConfig) -> list[float]:
    """One factor of the loss weight a token, constant in the gradient.

    With l and e the log-probabilities of `old` and `engine`, and C = tis_clip: the ratio is exp(l_t - e_t) for `token`,
    and for `sequence` exp(sum over its tokens of l - e), the same for all of them. `clip` gives min(ratio, C), `mask`
    the ratio where it is at most C, else 0.
    """
    logs = [a - b for a, b in zip(old, engine, strict=True)]
    if settings.tis == "sequence":
        logs = [math.fsum(logs)] * len(logs)
    limit = math.log(settings.tis_clip)
    beyond = settings.tis_clip if settings.tis_mode == "clip" else 0.0
    return [math.exp(log) if log <= limit else beyond for log in logs]
