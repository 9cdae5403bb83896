"""Means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

# 97.5% quantiles of Student's t distribution by degrees of freedom
_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


class Estimate(NamedTuple):
    """A mean over seeds, and half the width of its 95% interval (NaN for one seed)."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        if math.isnan(self.half_width):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def over_seeds(values: Sequence[float]) -> Estimate:
    """By Student's t: seeds are the only thing that is repeated, so their spread holds data, start and training."""
    count = len(values)
    if count == 1:
        return Estimate(values[0], math.nan)
    quantile = _QUANTILES.get(count - 1, 2.262)  # wider than needed for more than ten seeds
    return Estimate(mean(values), quantile * stdev(values) / math.sqrt(count))
