"""`loss.aggregation: official`: the normalisers of the paper's published code, for comparing with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from hpt.method.rows import Row, Signal

Reweight = Callable[[Sequence[Row]], list[Row]]
"""The rows of one micro-batch -> the same rows with other weights."""


def official_weights(max_tokens: int) -> Reweight:
    """Gives the rows of a micro-batch the weights of the published code.

        loss = sum_{RL, OFF}(A surrogate) / max_tokens + sum_SFT(surrogate) / n_SFT - entropy_coef sum_all(H) / n_all

    n counts response tokens of this micro-batch, and the losses of micro-batches are summed. So the share of SFT and of
    the entropy depends on how rows are split, which is why this is not the default. A row's own weight counts in the
    first two terms but not in the entropy's: w = 1 / n_all for every row, and the rest moves into A.
    """

    def reweight(rows: Sequence[Row]) -> list[Row]:
        all_tokens = sum(row.response_length for row in rows)
        sft_tokens = sum(row.response_length for row in rows if row.signal == Signal.SFT)
        reweighted = []
        for row in rows:
            factor = row.weight * all_tokens / (sft_tokens if row.signal == Signal.SFT else max_tokens)
            advantages = [factor * advantage for advantage in row.advantages]
            reweighted.append(replace(row, weight=1 / all_tokens, advantage=advantages))
        return reweighted

    return reweight
