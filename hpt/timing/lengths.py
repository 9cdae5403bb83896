"""The lengths of responses that a plan of time counts with: spread out, and the same in every plan.

Lengths are exponentially distributed and cut at the limit: a constant chance per token that a response ends. They are
not drawn but taken at evenly spread quantiles, in an order that mixes short and long.
"""

from __future__ import annotations

import math

# Steps of the golden ratio visit the quantiles evenly, whatever the count.
_GOLDEN = (math.sqrt(5) - 1) / 2


def spread_lengths(count: int, mean: float, limit: int) -> list[int]:
    """`count` lengths from 1 to `limit` tokens with a mean near `mean`; all `limit` where the mean is close to it."""
    scale = _scale(mean, limit)
    lengths = []
    for index in range(count):
        quantile = (index + 0.5) * _GOLDEN % 1.0
        length = -scale * math.log1p(-quantile) if math.isfinite(scale) else limit
        lengths.append(max(1, min(limit, math.ceil(length))))
    return lengths


def share_at_limit(mean: float, limit: int) -> float:
    """The share of responses that reach the limit."""
    scale = _scale(mean, limit)
    return math.exp(-limit / scale) if math.isfinite(scale) else 1.0


def mean_under(mean: float, limit: int, new_limit: int) -> float:
    """The mean that lengths with this mean under `limit` have under `new_limit`."""
    scale = _scale(mean, limit)
    return scale * -math.expm1(-new_limit / scale) if math.isfinite(scale) else min(mean, new_limit)


def _scale(mean: float, limit: int) -> float:
    """s with mean = s (1 - exp(-limit / s)), by bisection; infinite where nearly all responses reach the limit."""
    if mean >= 0.98 * limit:
        return math.inf
    low, high = mean, 30.0 * limit
    for _ in range(60):
        middle = (low + high) / 2
        if middle * -math.expm1(-limit / middle) < mean:
            low = middle
        else:
            high = middle
    return high
