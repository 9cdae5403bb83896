"""Statistics of evaluations: unbiased pass@k, bootstrap intervals over questions, exact tests of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
"""Sets of questions that a bootstrap draws."""

MAX_BINS = 2_000_000
"""Bins of a permutation test's distribution; differences too fine for them are rounded."""


@lru_cache(maxsize=65536)
def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that any of k responses is right, given c = `correct` right ones among n.

    1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1). Computed in integers with one division
    at the end, so it is exact to the last bit. Raises ValueError unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct = {correct} must be from 0 to n = {n}")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs k from 1 to the number of responses, n = {n}")
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - correct, k)) / subsets


class Estimate(NamedTuple):
    """A mean over questions and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean over questions with a bootstrap percentile interval. values: one per question.

    The interval comes from RESAMPLES sets of as many questions, drawn with replacement. If all values are equal (one
    question, or none solved), it has no width. Raises ValueError without values.
    """
    return bootstrap_average([values], level=level, seed=seed)


def bootstrap_average(benchmarks: Sequence[Sequence[float]], *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Mean over benchmarks of their means over questions, with an interval as in `bootstrap`.

    benchmarks: for each, one value per question. Questions are drawn within each benchmark. Raises ValueError without
    benchmarks and for one without values.
    """
    if not benchmarks or not all(benchmarks):
        raise ValueError("a mean needs at least one value")
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for values in benchmarks:
        # It is enough to draw how often each distinct value comes up.
        distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
        draws = generator.multinomial(len(values), counts / len(values), size=RESAMPLES)
        means += draws @ distinct / len(values)
    low, high = np.quantile(means / len(benchmarks), [(1 - level) / 2, (1 + level) / 2])
    mean = math.fsum(math.fsum(values) / len(values) for values in benchmarks) / len(benchmarks)
    return Estimate(mean, float(low), float(high))


def sign_test(ups: int, downs: int) -> float:
    """Two-sided exact p-value of the sign test (McNemar's exact test): are ups and downs equally likely?

    ups, downs: questions that only one of the two models solves. Questions without a change do not count; the p-value
    is 1 if there is no change.
    """
    n = ups + downs
    tail = sum(math.comb(n, i) for i in range(min(ups, downs) + 1))
    return min(1.0, 2 * tail / 2**n)


def permutation_test(differences: Sequence[int]) -> float:
    """Two-sided exact p-value of a paired permutation test (Fisher's sign-flip test): is the mean difference 0?

    differences: one per question, in any integer unit. The p-value is the share of all 2^N ways to swap the two models
    question by question whose mean is at least as far from 0. It is computed from the distribution of the sums, which
    is built up question by question, and not by sampling. If that takes more than MAX_BINS bins, the differences are
    rounded to a coarser unit.
    """
    sizes = sorted(abs(difference) for difference in differences if difference)
    unit = max(math.gcd(*sizes), math.ceil(sum(sizes) / MAX_BINS), 1)
    sizes = [round(size / unit) for size in sizes]
    total = sum(sizes)
    observed = abs(round(sum(differences) / unit))
    probabilities = np.ones(1)  # of each sum of the differences that are positive after the swaps
    for size in sizes:
        longer = np.zeros(len(probabilities) + size)
        longer[: len(probabilities)] = probabilities / 2
        longer[size:] += probabilities / 2
        probabilities = longer
    sums = 2 * np.arange(total + 1) - total  # of all differences, positive and negative
    return min(1.0, float(probabilities[np.abs(sums) >= observed].sum()))
