"""The gate: how much of each signal a question gets, from how well the policy solves it.

    L(q) = alpha L_RL(q) + beta L_SFT(q),   (alpha, beta) = (f(P), g(P)),   P = mean score of the question's rollouts

(arXiv 2509.04419, eq. 9-11; the switch is Algorithm 1.) Methods that also do off-policy RL on the demonstration have a
third coefficient, off, which equals beta unless the gate gives its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hpt.config.schema import Config
from hpt.config.sections.method import GateConfig
from hpt.support.errors import HptError
from hpt.support.named_functions import user_function


class Decision(NamedTuple):
    """The coefficients of one question's losses, each >= 0."""

    alpha: float  # RL on its rollouts
    beta: float  # SFT on its demonstration
    off: float  # off-policy RL on its demonstration

    @property
    def uses_demonstration(self) -> bool:
        return self.beta > 0 or self.off > 0


Gate = Callable[[float], Decision]
"""P in [0, 1] -> the question's decision."""

LARGEST = 1e6
"""The largest coefficient that a function may return: the loss must be finite in float32."""

NOTHING = Decision(alpha=0.0, beta=0.0, off=0.0)
ONLY_ROLLOUTS = Decision(alpha=1.0, beta=0.0, off=0.0)
ONLY_DEMONSTRATION = Decision(alpha=0.0, beta=1.0, off=1.0)
BOTH = Decision(alpha=1.0, beta=1.0, off=1.0)

# (alpha, off, beta) by how many of 7 rollouts are right. The last row is that of all higher counts, too.
_PUBLISHED: dict[str, list[tuple[float, float, float]]] = {
    "soft-1": [(0, 1, 1), (0.125, 1, 0.5), (0.25, 1, 0.25), (0.5, 1, 0.125), (1, 1, 0)],
    "soft-2": [(0, 0, 1), (0.125, 0, 0.5), (0.25, 0, 0.25), (0.5, 0, 0.125), (1, 0, 0)],
    "soft-3": [
        (0, 0, 1),
        (0.125, 0.5, 0.5),
        (0.25, 1, 0.25),
        (0.5, 0.5, 0.125),
        (1, 0.25, 0),
        (1, 0.125, 0),
        (1, 0, 0),
    ],
}


def published_table(name: str) -> list[list[float]]:
    """[alpha, beta, off] for 0 to 7 right rollouts of 7: the soft tables of the paper's code.

    There a group has 7 rollouts and the demonstration, and the tables are indexed by how many of these 8 are right. The
    demonstration is, so 0 does not occur, and 1 to 8 are the 8 rows here. `method: hpt-soft` has such groups. soft-1
    and soft-2 are the code's soft_type 1 and 2, and soft-3 is every other.
    """
    rows = _PUBLISHED[name]
    rows = rows + rows[-1:] * (8 - len(rows))
    return [[alpha, beta, off] for alpha, off, beta in rows]


def switch(gamma: float) -> Gate:
    """RL on the rollouts where P > gamma, else the demonstration only."""

    def gate(score: float) -> Decision:
        # P is a mean of n floats, so a share such as 1/3 may be off by rounding.
        if score > gamma and not math.isclose(score, gamma, rel_tol=1e-9):
            return ONLY_ROLLOUTS
        return ONLY_DEMONSTRATION

    return gate


def table(rows: Sequence[Sequence[float]]) -> Gate:
    """Rows spread evenly over P in [0, 1], linear between them: m + 1 rows are exact for m rollouts."""
    columns = np.array([_decision(row) for row in rows])

    def gate(score: float) -> Decision:
        place = score * (len(columns) - 1)
        if math.isclose(place, round(place), rel_tol=1e-9):
            place = round(place)
        return Decision(*(float(np.interp(place, np.arange(len(columns)), column)) for column in columns.T))

    return gate


def make_gate(settings: GateConfig, n: int) -> Gate:
    """The gate that a recipe's `gate` section describes, for `n` rollouts per question."""
    if settings.kind == "rl":
        return lambda score: ONLY_ROLLOUTS
    if settings.kind == "sft":
        return lambda score: ONLY_DEMONSTRATION
    if settings.kind == "both":
        return lambda score: BOTH
    if settings.kind == "function":
        assert settings.function is not None
        function = user_function(settings.function, field="gate.function", arguments=["P"])
        return _checked(function, settings.function)
    if settings.kind == "table":
        assert settings.table is not None
        return table(published_table(settings.table) if isinstance(settings.table, str) else settings.table)
    return switch(settings.gamma / n if isinstance(settings.gamma, int) else settings.gamma)


def gate_of(config: Config) -> Gate:
    """The gate of a run. Signals on demonstrations whose coefficient is 0 are dropped from its decisions."""
    gate = make_gate(config.gate, config.sampled)

    def decide(score: float) -> Decision:
        decision = gate(score)
        if config.sft.coef == 0:
            decision = decision._replace(beta=0.0)
        if config.off_policy.coef == 0:
            decision = decision._replace(off=0.0)
        return decision

    return decide


def _decision(shares: Sequence[float]) -> Decision:
    """From (alpha, beta), where beta is for both signals on the demonstration, or from (alpha, beta, off)."""
    alpha, beta, *off = (float(share) for share in shares)
    return Decision(alpha, beta, *(off or [beta]))


def _checked(function: Callable[[float], Any], name: str) -> Gate:
    def gate(score: float) -> Decision:
        result = function(score)
        try:
            decision = _decision(result)
        except (TypeError, ValueError, OverflowError):
            raise HptError(
                f"gate.function {name} returned {result!r} for P = {score}; it must return (alpha, beta) or "
                "(alpha, beta, off)"
            ) from None
        if not all(0 <= share <= LARGEST for share in decision):
            raise HptError(f"gate.function {name} returned {result!r} for P = {score}; allowed: from 0 to {LARGEST:g}")
        return decision

    return gate
