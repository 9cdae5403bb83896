"""Every question comes once per epoch, in an order that depends only on the seed and the step."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt.data.order import MixedOrder, QuestionOrder, make_order


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40), epochs=st.integers(1, 4))
def test_every_question_once_an_epoch(n, batch_size, seed, epochs):
    order = QuestionOrder(n, batch_size, seed)
    steps = -(-n * epochs // batch_size)
    batches = [order.batch(step) for step in range(1, steps + 1)]
    assert {len(batch) for batch in batches} == {batch_size}
    seen = list(itertools.chain(*batches))
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    # A pure function of the step: any order of asking, and a new object, give the same.
    again = QuestionOrder(n, batch_size, seed)
    assert [again.batch(step) for step in range(steps, 0, -1)] == batches[::-1]


def test_order_depends_on_seed_and_epoch_and_is_uniform():
    assert QuestionOrder(50, 50, 0).batch(1) != QuestionOrder(50, 50, 1).batch(1)
    assert QuestionOrder(50, 50, 0).batch(1) != QuestionOrder(50, 50, 0).batch(2)
    first = Counter(QuestionOrder(4, 1, seed).batch(1)[0] for seed in range(4000))
    # 4 equally likely values, 4,000 draws: standard deviation sqrt(4000 * 3/16) = 27.4.
    assert all(abs(first[i] - 1000) < 5 * 27.4 for i in range(4))


def test_order_is_the_same_in_every_version():
    assert QuestionOrder(6, 6, 0).batch(1) == [0, 1, 5, 3, 4, 2]


def test_order_refuses_what_has_no_meaning():
    for n, batch_size in [(0, 1), (1, 0)]:
        with pytest.raises(ValueError, match="at least one question"):
            QuestionOrder(n, batch_size, 0)
    with pytest.raises(ValueError, match="count from 1"):
        QuestionOrder(3, 1, 0).batch(0)


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=5),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_mixture_gives_every_batch_each_share_and_keeps_it_in_the_long_run(weights, batch_size, seed):
    order = MixedOrder((7,) * len(weights), tuple(weights), batch_size, seed)
    exact = [batch_size * weight / sum(weights) for weight in weights]
    total = [0] * len(weights)
    for step in range(1, 300):
        counts = order.counts(step)
        assert sum(counts) == batch_size
        for source, count in enumerate(counts):
            assert abs(count - exact[source]) < 1 + 1e-9
            total[source] += count
            assert abs(total[source] - exact[source] * step) < 3


def test_each_source_of_a_mixture_has_its_own_shuffled_epochs():
    order = MixedOrder((4, 6), (1.0, 3.0), 8, 5)
    batches = [order.batch(step) for step in range(1, 10)]
    seen = list(itertools.chain(*batches))
    first, second = [i for i in seen if i < 4], [i - 4 for i in seen if i >= 4]
    assert (len(first), len(second)) == (18, 54)
    for indices, n in ((first, 4), (second, 6)):
        for epoch in range(len(indices) // n):
            assert sorted(indices[epoch * n : (epoch + 1) * n]) == list(range(n))
    again = MixedOrder((4, 6), (0.25, 0.75), 8, 5)  # a pure function, of the shares alone
    assert [again.batch(step) for step in range(9, 0, -1)] == batches[::-1]


def test_a_mixture_of_one_source_is_the_order_of_its_questions():
    assert MixedOrder((9,), (0.3,), 4, 7).batch(5) == QuestionOrder(9, 4, 7).batch(5)
    assert make_order([9], [0.3], 4, 7) == QuestionOrder(9, 4, 7)
    assert make_order([9, 2], [0.3, 1], 4, 7) == MixedOrder((9, 2), (0.3, 1), 4, 7)
    assert MixedOrder((6, 6), (1, 1), 12, 0).batch(1)[:6] != [
        i - 6 for i in MixedOrder((6, 6), (1, 1), 12, 0).batch(1)[6:]
    ]
