"""hpt.evaluation.compare: significance tests against enumeration, counts against those made by hand."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt.evaluation.compare import Comparison, Pair
from hpt.evaluation.statistics import MAX_BINS, permutation_test, sign_test

# ---- significance


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_sign_test_counts_the_coin_flips(ups, downs):
    uneven = [abs(sum(flips)) >= abs(ups - downs) for flips in product((-1, 1), repeat=ups + downs)]
    assert sign_test(ups, downs) == sign_test(downs, ups) == np.mean(uneven)


def test_the_sign_test_at_the_ends():
    assert sign_test(0, 0) == 1.0
    assert sign_test(1000, 0) == 2 * 0.5**1000
    assert sign_test(2000, 2000) == 1.0


@given(st.lists(st.integers(-9, 9), max_size=10))
def test_the_permutation_test_counts_all_swaps(differences):
    observed = abs(sum(differences))
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    expected = np.mean([each >= observed for each in sums]) if differences else 1.0
    assert permutation_test(differences) == pytest.approx(expected, rel=1e-12)


def test_the_permutation_test_of_single_answers_is_the_sign_test():
    assert permutation_test([1] * 30 + [-1] * 12 + [0] * 99) == pytest.approx(sign_test(30, 12), rel=1e-10)


def test_the_permutation_test_of_many_questions_agrees_with_sampled_swaps():
    generator = np.random.default_rng(0)
    differences = generator.integers(-32, 33, size=300) + generator.integers(0, 5, size=300)
    swaps = generator.choice([-1, 1], size=(20_000, 300)) @ differences
    sampled = np.mean(np.abs(swaps) >= abs(differences.sum()))
    exact = permutation_test(differences.tolist())
    assert 0.001 < exact < 0.5
    assert exact == pytest.approx(sampled, abs=4 * math.sqrt(exact / 20_000))


def test_the_permutation_test_does_not_depend_on_the_unit_and_bounds_its_memory():
    differences = np.random.default_rng(1).integers(-8, 10, size=60)
    assert permutation_test((differences * 7_919).tolist()) == permutation_test(differences.tolist())
    fine = differences * 1_000_003 + np.arange(60)  # no common unit: 60 questions in 2.5e8 steps
    assert np.abs(fine).sum() > 100 * MAX_BINS
    # Rounding breaks ties that are none in the coarse unit, so it can only lose them.
    assert permutation_test(fine.tolist()) == pytest.approx(permutation_test(differences.tolist()), rel=0.1)


def test_the_permutation_test_is_level_where_nothing_differs():
    generator = np.random.default_rng(2)
    rejected = np.mean([permutation_test(generator.integers(-8, 9, size=40).tolist()) < 0.05 for _ in range(400)])
    assert rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert rejected >= 0.01


# ---- what has changed


@pytest.mark.parametrize(
    ("a", "b", "majority", "any", "avg"),
    [
        ((0, 8), (5, 8), "newly solved", "newly solved", "newly solved"),
        ((0, 8), (1, 8), "unsolved", "newly solved", "newly solved"),
        ((4, 8), (5, 8), "newly solved", "solved", "newly solved"),  # half is no majority
        ((8, 8), (4, 8), "forgotten", "solved", "forgotten"),
        ((1, 8), (0, 8), "unsolved", "forgotten", "forgotten"),
        ((2, 8), (2, 8), "unsolved", "solved", "same"),
        ((7, 8), (8, 8), "solved", "solved", "newly solved"),
        ((2, 8), (8, 32), "unsolved", "solved", "same"),
    ],
)
def test_newly_solved_and_forgotten(a, b, majority, any, avg):
    pair = Pair("", "q", None, *a, *b)
    assert [pair.change(rule) for rule in ("majority", "any", "avg")] == [majority, any, avg]


def test_numbers_of_a_comparison():
    pairs = [Pair("", f"{i}", None, a, 4, b, 4) for i, (a, b) in enumerate([(0, 4), (0, 3), (4, 1), (2, 2), (1, 2)])]
    comparison = Comparison(pairs, "majority")
    numbers = comparison.numbers()
    assert (numbers["accuracy_a"], numbers["accuracy_b"]) == (7 / 20, 12 / 20)
    assert numbers["difference"]["mean"] == pytest.approx(0.25)
    assert numbers["difference"]["low"] < 0 < numbers["difference"]["high"]
    assert (numbers["newly_solved"], numbers["forgotten"]) == (2, 1)
    assert numbers["p_of_changes"] == sign_test(2, 1) == 1.0
    assert numbers["p_of_accuracy"] == permutation_test([4, 3, -3, 0, 1])
