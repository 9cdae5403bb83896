"""SRFT's weights: how uncertain the policy is about a sequence decides how much the sequence counts."""

from __future__ import annotations

import math

import pytest

from hpt.method.entropy_weights import weigh_by_entropy
from hpt.method.rows import Row, Signal

H = (0.3 + 0.1) / 2


@pytest.mark.parametrize(
    ("signal", "advantage", "factor"),
    [
        (Signal.SFT, 1.0, 0.5 * math.exp(-H)),
        (Signal.RL, 2.0, 0.1 * math.exp(H)),
        (Signal.RL, 0.0, 1.0),
        (Signal.RL, -2.0, 1.0),
        (Signal.OFF_POLICY, 2.0, 1.0),
    ],
)
def test_demonstrations_count_less_and_good_rollouts_more_where_entropy_is_high(
    signal: Signal, advantage: float, factor: float
) -> None:
    row = Row([1, 2, 3], 1, signal, weight=3.0, advantage=advantage)
    weigh_by_entropy(row, [0.3, 0.1])
    assert row.weight == pytest.approx(3.0 * factor, rel=1e-15)
