"""Truncated importance sampling: rollouts are sampled from the engine's pi, but trained under the trainer's.

The two differ by rounding and by kernels even with the same weights. The ratio pi_old / pi_engine, where pi_old is the
trainer's policy whose weights the engine had, corrects for it (Yao et al., "Your Efficient RL Framework Secretly Brings
You Off-Policy RL Training", 2025). It is truncated, so that one unlikely token cannot dominate the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpt.config.sections.method import LossConfig
from hpt.method.rows import Row


def set_importance(row: Row, settings: LossConfig) -> None:
    """Gives the row of a rollout the importance of its tokens; needs `old_logprobs`. Other rows stay as they are."""
    if row.old_logprobs is not None and row.rollout_logprobs is not None:
        row.importance = importance_weights(row.old_logprobs, row.rollout_logprobs, settings)


def importance_weights(old: Sequence[float], engine: Sequence[float], settings: LossConfig) -> list[float]:
    """One factor of the loss weight per token, constant in the gradient.

    With l and e the log-probabilities of `old` and `engine`, and C = tis_clip: the ratio is exp(l_t - e_t) for `token`,
    and for `sequence` exp(sum over its tokens of l - e), the same for all of them. `clip` gives min(ratio, C), `mask`
    the ratio where it is at most C, else 0.
    """
    log_ratios = [a - b for a, b in zip(old, engine, strict=True)]
    if settings.tis == "sequence":
        log_ratios = [math.fsum(log_ratios)] * len(log_ratios)
    limit = math.log(settings.tis_clip)
    truncated = truncated_importance(settings)
    return [math.exp(log_ratio) if log_ratio <= limit else truncated for log_ratio in log_ratios]


def truncated_importance(settings: LossConfig) -> float:
    """What a ratio above tis_clip becomes."""
    return settings.tis_clip if settings.tis_mode == "clip" else 0.0
