"""pass@k and the bootstrap against their definitions; an evaluation counted by hand."""

import json
import math
import time
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt.data.questions import Question
from hpt.evaluation.evaluate import EvalResult, QuestionResult, evaluate
from hpt.evaluation.statistics import bootstrap, bootstrap_average, pass_at_k
from hpt.rollout import Rollout
from hpt.support.errors import HptError
from hpt.verify import MathVerifier, Verdict

# ---- pass@k


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(case):
    n, correct, k = case
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, correct, k) == sum(any(i < correct for i in subset) for subset in subsets) / len(subsets)


@given(st.integers(1, 4000).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_exact_for_thousands_of_responses(case):
    n, correct, k = case
    wrong = Fraction(1)
    for i in range(min(correct, n - k + 1)):  # C(n-c, k) / C(n, k) = prod over i < c of (n-k-i) / (n-i)
        wrong *= Fraction(n - k - i, n - i)
    assert pass_at_k(n, correct, k) == float(1 - wrong)


def test_pass_at_k_of_a_rare_success_keeps_its_digits():
    assert pass_at_k(10_000, 1, 1) == 1e-4
    assert pass_at_k(10_000, 1, 10_000) == 1.0
    assert pass_at_k(10_000, 0, 500) == 0.0


def test_pass_at_k_is_unbiased():
    """Its mean over binomial draws is 1 - (1 - p)^k, exactly."""
    n, k, p = 12, 5, 0.3
    mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, rel=1e-13)


@pytest.mark.parametrize(("n", "correct", "k"), [(8, 9, 1), (8, -1, 1), (8, 4, 0), (8, 4, 9)])
def test_pass_at_k_refuses_impossible_counts(n, correct, k):
    with pytest.raises(ValueError, match=r"must be from 0 to n = 8|from 1 to the number of responses, n = 8"):
        pass_at_k(n, correct, k)


# ---- bootstrap


def test_bootstrap_agrees_with_redrawing_the_questions():
    values = np.random.default_rng(1).choice([0, 0.125, 0.5, 1], size=60)
    estimate = bootstrap(values.tolist())
    means = np.random.default_rng(2).choice(values, size=(20_000, 60)).mean(1)
    error = values.std() / np.sqrt(60)
    assert estimate.mean == pytest.approx(values.mean())
    # Both quantiles carry sampling noise of about 0.03 standard errors.
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.15 * error)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    draws = np.random.default_rng(3).binomial(8, 0.4, size=(200, 100)) / 8
    covered = np.mean([low <= 0.4 <= high for _, low, high in map(bootstrap, draws.tolist())])
    assert 0.89 <= covered <= 0.99  # 0.95 with a standard error of 0.015


def test_bootstrap_is_reproducible_and_honest_about_no_spread():
    assert bootstrap([0.0, 1.0, 0.5]) == bootstrap([0.5, 0.0, 1.0])
    assert bootstrap([0.25]) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])


def test_the_average_of_groups_counts_each_group_once():
    small, large = [0.0, 1.0], [0.5] * 100 + [1.0] * 100
    average = bootstrap_average([small, large])
    assert average.mean == (0.5 + 0.75) / 2
    # The two questions of `small` come out 0, 1/2 or 1; they decide the width.
    assert average.low == pytest.approx((0 + 0.75) / 2, abs=0.03)
    assert average.high == pytest.approx((1 + 0.75) / 2, abs=0.03)
    assert bootstrap_average([large]) == bootstrap(large)
    for groups in ([], [[1.0], []]):
        with pytest.raises(ValueError, match="at least one value"):
            bootstrap_average(groups)


# ---- an evaluation

QUESTIONS = [
    Question("a", "1+1?", "2", grade="easy"),
    Question("b", "10+10?", "20", grade="hard"),
    Question("c", ({"role": "user", "content": "5+5?"},), "10", grade="easy"),
    Question("d", "is it?", "yes"),
]
ANSWERS = {
    "a": [r"\boxed{2}", r"so \boxed{2.0}"],
    "b": [r"\boxed{21}", "cut off \\boxed{2"],
    "c": [r"\boxed{10}", r"\boxed{11}"],
    "d": [r"\boxed{yes}", "[bold]?"],
}


def response(text):
    return Rollout(list(text), [], "stop" if text.endswith("}") else "length", text)


def generate(questions, on_rollout=None):
    groups = [[response(text) for text in ANSWERS[question.id]] for question in questions]
    if on_rollout:
        for place in (1, 0):  # the last question is the first to be complete
            for index in reversed(range(len(questions))):
                on_rollout(index, place, groups[index][place])
    return groups


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(workers=1, timeout=20) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def result(verifier):
    return evaluate(QUESTIONS, generate, verifier.mark, n=2)


def test_counts(result):
    assert [question.correct for question in result.questions] == [2, 0, 1, 1]
    assert (result.correct, result.count, result.accuracy) == (4, 8, 0.5)
    assert result.statuses == {"correct": 4, "incorrect": 2, "unparsable": 2, "timeout": 0}
    assert result.truncated == 2
    assert result.length_sum == sum(len(text) for texts in ANSWERS.values() for text in texts)
    assert {grade: (part.correct, part.count) for grade, part in result.grades.items()} == {
        "easy": (3, 4),
        "hard": (0, 2),
    }


def test_average_and_pass_at_k(result):
    assert result.average().mean == result.pass_at(1).mean == 0.5
    assert result.pass_at(2).mean == 0.75
    assert result.grades["easy"].pass_at(2) == (1.0, 1.0, 1.0)
    assert result.average().low < 0.5 < result.average().high
    for k in (0, 3):
        with pytest.raises(HptError, match=rf"pass@{k}: k must be from 1 to .* n = 2"):
            result.pass_at(k)


def test_metrics_of_a_training_step(result):
    length = result.length_sum
    assert result.metrics() == {
        "eval/accuracy": 0.5,
        "eval/correct": 4,
        "eval/count": 8,
        "eval/length": length / 8,
        "eval/length_sum": length,
        "eval/truncated": 2,
        "eval/unparsable": 2,
        "eval/timeout": 0,
        "eval/accuracy/easy": 0.75,
        "eval/correct/easy": 3,
        "eval/count/easy": 4,
        "eval/accuracy/hard": 0.0,
        "eval/correct/hard": 0,
        "eval/count/hard": 2,
    }


def test_written_results(result, tmp_path):
    result.write(tmp_path / "new" / "folder", [1, 2], {"seed": 3})
    lines = [json.loads(line) for line in (tmp_path / "new" / "folder" / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["a", "b", "c", "d"]
    assert lines[1] == {
        "id": "b",
        "grade": "hard",
        "prompt": "10+10?",
        "answer": "20",
        "n": 2,
        "correct": 0,
        "responses": ANSWERS["b"],
        "scores": [0.0, 0.0],
        "statuses": ["incorrect", "unparsable"],
        "details": ["", "no final answer"],
        "finish_reasons": ["stop", "length"],
        "lengths": [len(text) for text in ANSWERS["b"]],
    }
    summary = json.loads((tmp_path / "new" / "folder" / "summary.json").read_text())
    assert summary["settings"] == {"seed": 3}
    assert summary["pass@2"]["mean"] == 0.75
    assert summary["avg@2"] == result.average()._asdict()
    assert summary["grades"]["hard"]["pass@1"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert (summary["questions"], summary["correct"], summary["count"]) == (4, 4, 8)


def test_a_question_is_reported_once_all_its_responses_are_there(result, verifier):
    seen = []
    assert evaluate(QUESTIONS, generate, verifier.mark, n=2, on_question=seen.append) == result
    assert [each.question.id for each in seen] == ["d", "c", "b", "a"]
    assert seen[::-1] == result.questions


def test_what_was_complete_is_reported_before_an_interruption(verifier):
    seen = []

    def interrupted(questions, on_rollout):
        for index, group in enumerate(generate(questions)):
            for place, rollout in enumerate(group):
                if (index, place) == (2, 1):
                    raise KeyboardInterrupt
                on_rollout(index, place, rollout)

    with pytest.raises(KeyboardInterrupt):
        evaluate(QUESTIONS, interrupted, verifier.mark, n=2, on_question=seen.append)
    assert [each.question.id for each in seen] == ["a", "b"]


def test_a_failure_to_mark_ends_the_sampling():
    def endless(questions, on_rollout):
        for _ in range(1000):
            on_rollout(0, 0, response("2"))
            time.sleep(0.01)
        raise AssertionError("it went on")

    def broken(questions, groups):
        raise HptError("the verifier is broken")

    with pytest.raises(HptError, match="the verifier is broken"):
        evaluate(QUESTIONS, endless, broken, n=1)


def test_partial_credit_is_not_correct():
    partly, right = generate(QUESTIONS[:1])[0]
    partly.verdict, right.verdict = Verdict("incorrect", 0.5), Verdict("correct", 1.0)
    assert EvalResult(2, [QuestionResult(QUESTIONS[0], [partly, right])]).accuracy == 0.5


def test_misuse(verifier):
    with pytest.raises(HptError, match="no questions"):
        evaluate([], generate, verifier.mark, n=2)
    with pytest.raises(ValueError, match="n = 3 responses to each of 4"):
        evaluate(QUESTIONS, generate, verifier.mark, n=3)
