"""Estimates from a few sampled responses a question: pass@k, and what the choice of questions leaves uncertain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000


@lru_cache(maxsize=65536)
def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that any of k responses is right, from c = `correct` right ones among n.

    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1), in whole numbers up to one division, so
    exact to the last bit however large n is. ValueError unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct = {correct} must be from 0 to n = {n}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to the number of responses, n = {n}")
    ways = math.comb(n, k)
    return (ways - math.comb(n - correct, k)) / ways


class Estimate(NamedTuple):
    """A mean over questions and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean of one value a question, with the percentile interval over RESAMPLES redrawn sets of as many questions.

    Where all values are equal (one question, or none solved) the interval has no width: it knows only what it saw.
    """
    return bootstrap_average([values], level=level, seed=seed)


def bootstrap_average(groups: Sequence[Sequence[float]], *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean of the groups' means, each group (a benchmark's questions) redrawn by itself, as in `bootstrap`."""
    if not groups or not all(groups):
        raise ValueError("a mean needs at least one value")
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for values in groups:
        # Drawing questions with replacement is drawing how often each distinct value comes up.
        distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
        draws = generator.multinomial(len(values), counts / len(values), size=RESAMPLES)
        means += draws @ distinct / len(values)
    low, high = np.quantile(means / len(groups), [(1 - level) / 2, (1 + level) / 2])
    mean = math.fsum(math.fsum(values) / len(values) for values in groups) / len(groups)
    return Estimate(mean, float(low), float(high))
