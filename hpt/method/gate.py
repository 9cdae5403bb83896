"""The gate: how much of each signal a question gets, from how well the policy solves it.

    L(q) = alpha L_RL(q) + beta L_SFT(q),   (alpha, beta) = (f(P), g(P)),   P = mean score of the question's rollouts

(arXiv 2509.04419, eq. 9-11; the switch is Algorithm 1.) Methods that also do off-policy RL on the demonstration have a
third coefficient, off, which is beta unless the gate says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from hpt.config.schema import GateConfig
from hpt.support.errors import HptError
from hpt.support.named_functions import resolve


class Decision(NamedTuple):
    """Coefficients of one question's losses, each >= 0."""

    alpha: float  # RL on its rollouts
    beta: float  # SFT on its demonstration
    off: float  # off-policy RL on its demonstration


Gate = Callable[[float], Decision]
"""P in [0, 1] -> the question's decision."""

RL = Decision(1.0, 0.0, 0.0)
DEMONSTRATION = Decision(0.0, 1.0, 1.0)
BOTH = Decision(1.0, 1.0, 1.0)

_SOLVED: dict[
    str, list[tuple[float, float, float]]
] = {  # (alpha, off, beta) by the number solved of 8 rollouts and the demonstration, counted from 1
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
    """[alpha, beta, off] for 0 to 8 right rollouts of 8: the soft tables of the paper's code.

    There they are indexed by a count that includes the demonstration, which is always right, and end at 8: a question
    with all 8 rollouts right has no entry. It gets that of 7.
    """
    rows = _SOLVED[name]
    rows = rows + rows[-1:] * (9 - len(rows))
    return [[alpha, beta, off] for alpha, off, beta in rows]


def switch(gamma: float) -> Gate:
    """RL on the rollouts where P > gamma; else the demonstration alone."""

    def gate(score: float) -> Decision:
        # P is a mean of n floats: a share such as 1/3 must compare equal to the same count of n.
        above = score > gamma and not math.isclose(score, gamma, rel_tol=1e-9)
        return RL if above else DEMONSTRATION

    return gate


def table(rows: Sequence[Sequence[float]]) -> Gate:
    """Rows spread evenly over P in [0, 1], linear between them: m + 1 rows are exact for counts of m rollouts."""
    columns = np.array([_decision(row) for row in rows])

    def gate(score: float) -> Decision:
        place = score * (len(columns) - 1)
        if math.isclose(place, round(place), rel_tol=1e-9):
            place = round(place)
        return Decision(*(float(np.interp(place, np.arange(len(columns)), column)) for column in columns.T))

    return gate


def make_gate(config: GateConfig, n: int) -> Gate:
    """The gate of a recipe, for `n` rollouts a question."""
    constant = {"rl": RL, "sft": DEMONSTRATION, "both": BOTH}.get(config.kind)
    if constant is not None:
        return lambda score: constant
    if config.kind == "function":
        assert config.function is not None
        return _checked(resolve(config.function, field="gate.function", arguments=["P"]), config.function)
    if config.kind == "table":
        assert config.table is not None
        return table(published_table(config.table) if isinstance(config.table, str) else config.table)
    return switch(config.gamma / n if isinstance(config.gamma, int) else config.gamma)


def needs_rollouts(config: GateConfig) -> bool:
    return config.kind != "sft"


def needs_demonstrations(config: GateConfig) -> bool:
    return config.kind != "rl"


def _decision(shares: Sequence[float]) -> Decision:
    """(alpha, beta): beta is the demonstration's, however it is trained on; (alpha, beta, off) tells the two apart."""
    alpha, beta, *off = (float(share) for share in shares)
    return Decision(alpha, beta, *(off or [beta]))


def _checked(function: Callable[[float], Any], name: str) -> Gate:
    def gate(score: float) -> Decision:
        result = function(score)
        try:
            decision = _decision(result)
        except (TypeError, ValueError):
            raise HptError(
                f"gate.function {name} returned {result!r} for P = {score}; it must return (alpha, beta) or "
                "(alpha, beta, off)"
            ) from None
        if not all(0 <= share < math.inf for share in decision):
            raise HptError(f"gate.function {name} returned {result!r} for P = {score}; all must be finite and >= 0")
        return decision

    return gate
