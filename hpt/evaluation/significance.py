"""Exact paired tests over questions: could the difference of two models be chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_STEPS = 2_000_000
"""Steps of the permutation distribution; beyond, differences are rounded to this share of their sum."""


def sign_test(ups: int, downs: int) -> float:
    """Two-sided exact p of so uneven a split where up and down are equally likely (McNemar's exact test).

    Questions that did not change say nothing and are not counted; 1.0 where none changed.
    """
    n = ups + downs
    tail = sum(math.comb(n, i) for i in range(min(ups, downs) + 1))
    return min(1.0, 2 * tail / 2**n)


def permutation_test(differences: Sequence[int]) -> float:
    """Two-sided exact p of the mean of paired differences, in any whole unit: the share of all 2^N ways to swap the two
    models question by question (Fisher's sign-flip test) whose mean is at least as far from 0.

    Not sampled but counted, by adding up the distribution question by question.
    """
    sizes = sorted(abs(difference) for difference in differences if difference)
    unit = max(math.gcd(*sizes), math.ceil(sum(sizes) / MAX_STEPS), 1)
    sizes = [round(size / unit) for size in sizes]
    total = sum(sizes)
    observed = abs(round(sum(differences) / unit))
    chance = np.ones(1)  # of each sum of those that are swapped up
    for size in sizes:
        grown = np.zeros(len(chance) + size)
        grown[: len(chance)] = chance / 2
        grown[size:] += chance / 2
        chance = grown
    return min(1.0, float(chance[np.abs(2 * np.arange(total + 1) - total) >= observed].sum()))
