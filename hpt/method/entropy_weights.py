"""SRFT's weights (arXiv 2506.19767): how uncertain the policy is about a sequence decides how much the sequence counts.

With H the mean entropy of the sequence's tokens in nats, without gradient: SFT counts exp(-H) / 2, a rollout with a
positive advantage exp(H) / 10. Other rollouts and off-policy rows keep their weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpt.method.rows import Row, Signal


def weigh_by_entropy(row: Row, entropies: Sequence[float]) -> None:
    """Changes the row's weight by the entropies of its response tokens."""
    entropy = math.fsum(entropies) / len(entropies)
    if row.signal == Signal.SFT:
        row.weight = row.weight * 0.5 * math.exp(-entropy)
    elif row.signal == Signal.RL and isinstance(row.advantage, float) and row.advantage > 0:
        row.weight = row.weight * 0.1 * math.exp(entropy)
