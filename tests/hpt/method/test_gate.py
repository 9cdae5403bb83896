"""The gate against the paper's table, at every count of right rollouts."""

from __future__ import annotations

import pytest

from hpt.config.recipe import load_config
from hpt.config.sections.method import GateConfig
from hpt.method.gate import gate_of, make_gate
from hpt.support.errors import ConfigError, HptError

RL, SFT = (1.0, 0.0, 0.0), (0.0, 1.0, 1.0)  # alpha, beta, off


@pytest.mark.parametrize("n", [1, 3, 7, 8, 49])
def test_switch_by_count_sends_exactly_the_questions_with_at_most_gamma_right_to_sft(n: int) -> None:
    for gamma in range(n):
        gate = make_gate(GateConfig(kind="switch", gamma=gamma), n)
        for right in range(n + 1):
            # P as the trainer computes it: a sum of scores over a count, not right / n in one go.
            score = sum([1.0] * right + [0.0] * (n - right)) / n
            assert gate(score) == (SFT if right <= gamma else RL), (n, gamma, right)


def test_switch_by_share_is_not_moved_by_rounding() -> None:
    gate = make_gate(GateConfig(kind="switch", gamma=0.3), 10)
    assert 0.1 + 0.1 + 0.1 > 0.3  # the float sum overshoots
    assert gate(0.1 + 0.1 + 0.1) == SFT
    assert gate(0.4) == RL


def test_constant_gates_and_what_they_need() -> None:
    for score in (0.0, 0.5, 1.0):
        assert make_gate(GateConfig(kind="rl"), 8)(score) == RL
        assert make_gate(GateConfig(kind="sft"), 8)(score) == SFT
    assert [GateConfig(kind=kind).needs_rollouts for kind in ("switch", "rl", "sft")] == [True, True, False]
    assert [GateConfig(kind=kind).needs_demonstrations for kind in ("switch", "rl", "sft")] == [True, False, True]


def half(score: float) -> tuple[float, float]:
    return score, (1 - score) / 2


def negative(score: float) -> tuple[float, float]:
    return -1.0, 1.0


def not_a_pair(score: float) -> float:
    return score


def one_alone(score: float) -> tuple[float]:
    return (score,)


def four(score: float) -> tuple[float, ...]:
    return score, score, score, score


def undefined(score: float) -> tuple[float, float]:
    return float("nan"), 1.0


def extremes(score: float) -> tuple[float, float]:
    return 0.0, 1e6


def no_arguments() -> tuple[float, float]:
    return 1.0, 1.0


def test_a_users_function(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "my_gates", sys.modules[__name__])
    gate = make_gate(GateConfig(kind="function", function="my_gates:half"), 8)
    assert gate(0.25) == (0.25, 0.375, 0.375)
    assert make_gate(GateConfig(kind="function", function="my_gates:extremes"), 8)(0.5) == (0.0, 1e6, 1e6)
    for name in ("negative", "not_a_pair", "one_alone", "four", "undefined"):
        with pytest.raises(HptError, match=f"my_gates:{name} returned .* for P = 0.5"):
            make_gate(GateConfig(kind="function", function=f"my_gates:{name}"), 8)(0.5)
    with pytest.raises(ConfigError, match=r"gate.function = 'my_gates:absent': .* has no 'absent'"):
        make_gate(GateConfig(kind="function", function="my_gates:absent"), 8)
    with pytest.raises(ConfigError, match=r"is called with \(P\) and takes \(\)"):
        make_gate(GateConfig(kind="function", function="my_gates:no_arguments"), 8)


def test_signals_whose_coefficient_is_0_are_dropped() -> None:
    for settings, decision in [
        ([], (0.0, 1.0, 0.0)),  # off_policy.coef is 0 by default
        (["sft.coef=0", "off_policy.coef=0.5"], (0.0, 0.0, 1.0)),
    ]:
        gate = gate_of(load_config("sums", ["gate.gamma=1", *settings]))
        assert gate(1 / load_config("sums").sampled) == decision
        assert gate(1.0) == RL


def test_both_at_once() -> None:
    gate = make_gate(GateConfig(kind="both"), 8)
    assert gate(0.0) == gate(1.0) == (1.0, 1.0, 1.0)


def test_a_table_is_not_moved_by_rounding() -> None:
    rows = [[right * 0.013, 1.0 - right * 0.02] for right in range(50)]
    gate = make_gate(GateConfig(kind="table", table=rows), 49)
    scores = [sum([1.0] * right) / 49 for right in range(50)]
    assert scores[1] * 49 < 1  # by a rounding
    assert [gate(score) for score in scores] == [(alpha, beta, beta) for alpha, beta in rows]


def test_a_table_is_exact_at_counts_and_linear_between() -> None:
    rows = [[0, 1], [0.1, 0.7], [0.5, 0.2], [1, 0]]
    gate = make_gate(GateConfig(kind="table", table=rows), 3)
    for right, (alpha, beta) in enumerate(rows):
        assert gate(sum([1.0] * right + [0.0] * (3 - right)) / 3) == (alpha, beta, beta)
    assert gate(0.5) == pytest.approx((0.3, 0.45, 0.45))
    assert make_gate(GateConfig(kind="table", table=[[0.5, 0.25, 0.125]]), 3)(0.7) == (0.5, 0.25, 0.125)


# (alpha, off, beta) of the published code by the number solved of 7 rollouts and the demonstration, 1 to 8
PUBLISHED = {
    "soft-1": "0 1 1, .125 1 .5, .25 1 .25, .5 1 .125, 1 1 0, 1 1 0, 1 1 0, 1 1 0",
    "soft-2": "0 0 1, .125 0 .5, .25 0 .25, .5 0 .125, 1 0 0, 1 0 0, 1 0 0, 1 0 0",
    "soft-3": "0 0 1, .125 .5 .5, .25 1 .25, .5 .5 .125, 1 .25 0, 1 .125 0, 1 0 0, 1 0 0",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_tables(name: str) -> None:
    """Their groups are 7 rollouts and the demonstration, which is always right."""
    config = load_config("sums", ["method=hpt-soft", f"gate.table={name}", "rollout.n=8"])
    assert config.sampled == 7
    assert config.demonstration_in_group
    gate = gate_of(config)
    for right, row in enumerate(PUBLISHED[name].split(", ")):
        alpha, off, beta = map(float, row.split())
        assert gate(sum([1.0] * right + [0.0] * (7 - right)) / 7) == (alpha, beta, off)
