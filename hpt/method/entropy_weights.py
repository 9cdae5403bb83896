"""SRFT's weights (arXiv 2506.19767): how uncertain the policy is about a sequence decides what the sequence counts.

With H the mean entropy of the sequence's tokens in nats, without gradient: imitation counts exp(-H) / 2, a right
rollout exp(H) / 10. Wrong rollouts and the demonstration's off-policy row keep their weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hpt.method.rows import RL, SFT, Row


def entropy_weighted(row: Row, entropies: Sequence[float]) -> Row:
    """`row` with its weight changed by the entropies of its response tokens."""
    entropy = math.fsum(entropies) / len(entropies)
    if row.signal == SFT:
        return replace(row, weight=row.weight * 0.5 * math.exp(-entropy))
    if row.signal == RL and isinstance(row.advantage, float) and row.advantage > 0:
        return replace(row, weight=row.weight * 0.1 * math.exp(entropy))
    return row
