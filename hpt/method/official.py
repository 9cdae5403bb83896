"""`loss.aggregation: official`: the normalisers of the paper's published code, for comparing with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hpt.method.rows import Row, Signal

Reweight = Callable[[Sequence[Row]], list[Row]]
"""The rows of one micro-batch -> the same rows with other weights."""


def official_weights(max_tokens: int, ranks: int) -> Reweight:
    """Gives the rows of a micro-batch the weights of the published code.

        loss = sum_{RL, OFF}(A surrogate) / max_tokens + sum_SFT(surrogate) / n_SFT - entropy_coef sum_all(H) / n_all

    n counts response tokens of this micro-batch; the losses of a rank's micro-batches are summed, and those of `ranks`
    ranks averaged, as FSDP does. So the share of SFT and of the entropy depends on how rows are split, which is why
    this is not the default. A row's own weight counts in the first two terms but not in the entropy's: w is the same
    for every row, and the rest moves into A.

    The published code has a demonstration with two signals as one sequence, so only one of its rows counts in the last
    term (`Row.entropy_bonus`). Its off-policy row may be in another micro-batch: what it adds is the same in any.
    """

    def reweight(rows: Sequence[Row]) -> list[Row]:
        all_tokens = sum(row.response_length for row in rows if row.entropy_bonus)
        sft_tokens = sum(row.response_length for row in rows if row.signal == Signal.SFT)
        weight = 1 / (ranks * max(1, all_tokens))
        reweighted = []
        for row in rows:
            own = row.weight / (ranks * (sft_tokens if row.signal == Signal.SFT else max_tokens))
            advantages = [own / weight * advantage for advantage in row.advantages]
            reweighted.append(replace(row, weight=weight, advantage=advantages))
        return reweighted

    return reweight
