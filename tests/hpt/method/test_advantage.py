"""Advantages against the formulas of their papers, written out plainly."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.data.questions import Question
from hpt.method.advantage import (
    LARGEST,
    advantages,
    advantages_with_demonstrations,
    find_estimator,
    group_advantages,
    overlong_penalty,
)
from hpt.method.experience import Experience
from hpt.rollout import Rollout
from hpt.support.errors import ConfigError, HptError

GROUPS = [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.0], [1.0, 0.0]]
scores = st.lists(st.lists(st.sampled_from([0.0, 0.1, 0.3, 1.0]), min_size=1, max_size=9), max_size=5)


def test_mean_and_std() -> None:
    for group, mean_only, with_std in zip(
        GROUPS, advantages(GROUPS, "mean"), advantages(GROUPS, "mean_std"), strict=True
    ):
        mean = statistics.mean(group)
        assert mean_only == pytest.approx([score - mean for score in group], abs=1e-15)
        scale = statistics.stdev(group) + 1e-6
        assert with_std == pytest.approx([(score - mean) / scale for score in group], abs=1e-12)


def test_a_small_spread_is_not_blown_up() -> None:
    """Rewards that differ by 2e-6 have a std of 1.4e-6, and 1e-6 is added to it: advantages are 0.41 and not 0.71."""
    expected = 1e-6 / (2**0.5 * 1e-6 + 1e-6)
    for estimator in ("mean_std", "batch"):
        assert advantages([[0.0, 2e-6]], estimator) == [pytest.approx([-expected, expected])]


def test_leave_one_out_is_the_score_less_the_mean_of_the_others() -> None:
    for group, estimates in zip(GROUPS, advantages(GROUPS, "leave_one_out"), strict=True):
        others = [statistics.mean(group[:i] + group[i + 1 :]) for i in range(len(group))]
        assert estimates == pytest.approx(
            [score - other for score, other in zip(group, others, strict=True)], abs=1e-15
        )


def test_batch_standardises_over_all_questions() -> None:
    everything = [score for group in GROUPS for score in group]
    mean, scale = statistics.mean(everything), statistics.stdev(everything) + 1e-6
    for group, estimates in zip(GROUPS, advantages(GROUPS, "batch"), strict=True):
        assert estimates == pytest.approx([(score - mean) / scale for score in group], abs=1e-12)


@given(scores)
def test_shapes_are_kept_and_groups_sum_to_zero(groups: list[list[float]]) -> None:
    for estimator in ("mean", "mean_std", "leave_one_out", "batch", "none"):
        estimates = advantages(groups, estimator)
        assert [len(group) for group in estimates] == [len(group) for group in groups]
        if estimator in ("mean", "mean_std", "leave_one_out"):
            # n terms of size at most 1 / std_floor-free scale: rounding grows with the largest advantage.
            bounds = [1e-14 * len(group) * max(1, *map(abs, group)) for group in estimates]
            assert all(abs(sum(group)) <= bound for group, bound in zip(estimates, bounds, strict=True))


@given(st.sampled_from([0.1, 0.3, 1 / 3, 1.0]), st.integers(1, 50))
def test_equal_scores_have_advantage_exactly_zero(score: float, n: int) -> None:
    for estimator in ("mean", "mean_std", "leave_one_out", "batch"):
        assert advantages([[score] * n], estimator) == [[0.0] * n]


def test_the_largest_advantage_is_the_largest_of_single_precision() -> None:
    assert advantages([[LARGEST, -LARGEST]], "none") == [[LARGEST, -LARGEST]]
    with pytest.raises(HptError, match="not finite in float32"):
        advantages([[np.nextafter(LARGEST, np.inf)]], "none")


def test_sign() -> None:
    assert advantages(GROUPS, "sign") == [[1, -1, -1, 1, -1, -1, -1, -1], [1, 1, -1], [-1, -1], [1, -1]]


def test_a_demonstration_is_one_of_its_group() -> None:
    rollouts, demonstrations = advantages_with_demonstrations(GROUPS, [1.0] * len(GROUPS), "mean", "mean_std")
    for group, own, demonstration in zip(GROUPS, rollouts, demonstrations, strict=True):
        everyone = [*group, 1.0]
        mean = statistics.mean(everyone)
        assert own == pytest.approx([score - mean for score in group], abs=1e-15)
        assert demonstration == pytest.approx((1 - mean) / (statistics.stdev(everyone) + 1e-6), abs=1e-12)
    assert advantages_with_demonstrations([[1.0, 1.0]], [1.0], "mean", "mean") == ([[0.0, 0.0]], [0.0])
    with pytest.raises(ValueError, match="shorter"):
        advantages_with_demonstrations(GROUPS, [1.0], "mean", "mean")


def experience(*rewards: float | None, demonstration: float | None = 1.0) -> Experience:
    rollouts = [Rollout([1], [0.0], "stop", rewards={"f": reward}, earned=reward) for reward in rewards]
    return Experience(Question("q", "", None, "d"), [1], rollouts, demonstration_reward=demonstration)


def test_a_rollout_without_a_reward_has_advantage_zero_and_is_in_no_baseline() -> None:
    config = load_config("demo", ["method=grpo", "rl.advantage=mean", "rewards=m:f"])
    experiences = [experience(1.0, None, 0.0), experience(None, None)]
    group_advantages(config)(experiences)
    assert [[rollout.advantage for rollout in each.rollouts] for each in experiences] == [[0.5, 0, -0.5], [0, 0]]
    assert [each.mixed for each in experiences] == [True, False]


def test_a_demonstration_has_the_reward_that_the_functions_give_it() -> None:
    config = load_config("demo", ["method=luffy", "rewards=m:f"])
    experiences = [experience(1.0, 0.0, demonstration=5.0), experience(1.0, 0.0, demonstration=None)]
    group_advantages(config)(experiences)
    assert [each.demonstration_advantage for each in experiences] == [3.0, 0.0]
    assert [[rollout.advantage for rollout in each.rollouts] for each in experiences] == [[-1.0, -2.0], [0.5, -0.5]]


def test_a_demonstration_outside_of_the_group_has_advantage_one() -> None:
    config = load_config("demo", ["method=hpt-offpolicy"])
    assert config.off_policy.advantage == "one"
    experiences = [experience(1.0, 0.0), experience(0.0, 0.0)]
    for each in experiences:
        each.demonstration_advantage = 7.0
    group_advantages(config)(experiences)
    assert [each.demonstration_advantage for each in experiences] == [1.0, 1.0]


@given(st.integers(1, 20), st.integers(0, 40))
def test_the_overlong_penalty_is_equation_13(cache: int, more: int) -> None:
    longest = cache + more
    for length in range(longest + 4):
        if length <= longest - cache:
            expected = 0.0
        elif length <= longest:
            expected = ((longest - cache) - length) / cache
        else:
            expected = -1.0
        assert overlong_penalty(length, longest, cache) == expected


def test_the_overlong_penalty_at_the_papers_lengths() -> None:
    found = [overlong_penalty(length, 20_480, 4_096) for length in (1, 16_384, 17_408, 18_432, 20_479, 20_480, 30_000)]
    assert found == [0, 0, -0.25, -0.5, -4_095 / 4_096, -1, -1]


def halves(rewards: list[np.ndarray]) -> list[np.ndarray]:
    return [group / 2 for group in rewards]


def too_few(rewards: list[np.ndarray]) -> list[np.ndarray]:
    return [group[1:] for group in rewards]


def test_a_function_of_the_users_is_an_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_advantages", sys.modules[__name__])
    assert advantages(GROUPS, "my_advantages:halves") == [[reward / 2 for reward in group] for group in GROUPS]
    with pytest.raises(HptError, match=r"too_few returned \[7, 2, 1, 1\] advantages per question for \[8, 3, 2, 2\]"):
        advantages(GROUPS, "my_advantages:too_few")


def numbers_of_dtype(rewards: list[np.ndarray]) -> list[list[float]]:
    return [[float(group.dtype == np.float64)] * group.size for group in rewards]


def test_a_function_of_the_users_is_given_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_advantages", sys.modules[__name__])
    assert advantages([[1, 0], [0, 0, 0]], "my_advantages:numbers_of_dtype") == [[1, 1], [1, 1, 1]]


def broken(rewards: list[np.ndarray]) -> list[np.ndarray]:
    raise KeyError("baseline")


def undefined(rewards: list[np.ndarray]) -> list[np.ndarray]:
    return [group * float("nan") for group in rewards]


def flat(rewards: list[np.ndarray]) -> list[float]:
    return [0.0 for _ in rewards]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", r"raised KeyError: 'baseline' .*line \d+"),
        ("undefined", "not finite"),
        ("flat", "one list of numbers"),
    ],
)
def test_what_a_function_does_wrong_is_said(monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    monkeypatch.setitem(sys.modules, "my_advantages", sys.modules[__name__])
    with pytest.raises(HptError, match=f"rl.advantage.*my_advantages:{name}.*{said}"):
        advantages(GROUPS, f"my_advantages:{name}")


def test_a_function_that_takes_no_rewards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_advantages", sys.modules[__name__])
    with pytest.raises(ConfigError, match=r"rl.advantage = .*is called with \(rewards\) and takes \(a, b\)"):
        find_estimator("my_advantages:of_two")


def of_two(a, b):  # type: ignore[no-untyped-def]
    raise AssertionError


@pytest.mark.parametrize("name", ["medean", "my_advantages:absent", "no_module:f"])
def test_an_estimator_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "my_advantages", sys.modules[__name__])
    with pytest.raises(ConfigError, match=f"rl.advantage = '{name}'"):
        find_estimator(name)


def test_a_run_is_refused_before_the_model_loads(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(world), "rl.advantage=medean", "model.path=nowhere", f"output={tmp_path}"]) == 2
    assert "rl.advantage = 'medean': allowed are mean, mean_std" in capsys.readouterr().err
