"""Probing: the same decisions and the same expectation as n rollouts, by enumerating every outcome."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.method.advantage import group_advantages
from hpt.method.experience import Experience
from hpt.method.gate import gate_of, switch
from hpt.method.probe import Probe, settled, solved
from hpt.method.rows import Signal, token_rows
from hpt.rollout import Rollout
from hpt.verify import GroupRewards, Judgement, Verdict

N, K = 5, 3


class Response(NamedTuple):
    """One of the responses that a policy can give. gradient: any numbers, in place of that of its log-probability."""

    probability: float
    score: float
    reward: float
    length: int
    gradient: tuple[float, float]

    @property
    def rollout(self) -> Rollout:
        return Rollout([0] * self.length, [0.0] * self.length, "stop")


BINARY = [Response(0.15, 1.0, 1.0, 2, (0.3, -1.0)), Response(0.6, 0.0, 0.0, 3, (-0.7, 0.2)),
          Response(0.25, 0.0, 0.0, 1, (1.9, 0.4))]  # fmt: skip
GRADED = [Response(0.2, 1.0, 0.8, 2, (0.3, -1.0)), Response(0.5, 0.25, -0.6, 3, (-0.7, 0.2)),
          Response(0.3, 0.5, 2.0, 1, (1.9, 0.4))]  # fmt: skip


def config(**settings: object) -> Config:
    """settings: by their keys, with "__" for a dot."""
    sections: dict[str, dict[str, object]] = {"rollout": {"n": N, "max_tokens": 9}}
    for key, value in settings.items():
        section, name = key.split("__")
        sections.setdefault(section, {})[name] = value
    base = {"output": "o", "steps": 1, "model": {"path": "m"}, "data": {"train": "t"}}
    return build_config(base | sections, source="test")


def judgement(responses: Sequence[Response]) -> Judgement:
    rewards = [each.reward for each in responses]
    verdicts = [Verdict("correct" if each.score == 1 else "incorrect", each.score) for each in responses]
    return Judgement(verdicts, GroupRewards({"function": list(rewards)}, {"function": 0}), list(rewards))


def visit(settings: Config, outcome: Sequence[Response], probe: Probe | None) -> Experience:
    """A question whose n rollouts would be `outcome`, with as many of them as the trainer samples."""
    experience = Experience(Question("q", "?", "", "d"), [0], demonstration=[0])

    def sample(count: int) -> None:
        have = len(experience.rollouts)
        drawn = outcome[have : have + count]
        experience.add([each.rollout for each in drawn], judgement(drawn))

    if probe:
        probe.first([experience])
        sample(probe.missing(experience))
        if probe.open([experience]):
            sample(probe.missing(experience))
    else:
        sample(N)
    experience.decision = gate_of(settings)(experience.score)
    group_advantages(settings)([experience])
    return experience


def rl_gradient(settings: Config, experience: Experience, outcome: Sequence[Response]) -> np.ndarray:
    """(2,) of the rows that RL trains on."""
    rows = [row for row in token_rows([experience], settings) if row.signal == Signal.RL]
    total = np.zeros(2)
    for row, response in zip(rows, outcome, strict=False):
        assert isinstance(row.advantage, float)
        total += row.weight * row.response_length * row.advantage * np.array(response.gradient)
    return total


def outcomes(responses: Sequence[Response], n: int = N) -> list[tuple[float, tuple[Response, ...]]]:
    """Every outcome of n rollouts, with its probability."""
    drawn = itertools.product(responses, repeat=n)
    return [(float(np.prod([each.probability for each in outcome])), outcome) for outcome in drawn]


@pytest.mark.parametrize("gate", [{"kind": "switch", "gamma": gamma} for gamma in (0, 1, 2, 0.3)] + [{"kind": "rl"}])
@pytest.mark.parametrize(
    ("advantage", "aggregation"), [("mean", "sequence"), ("leave_one_out", "constant"), ("none", "sequence")]
)
@pytest.mark.parametrize("responses", [BINARY, GRADED], ids=["binary", "graded"])
def test_the_expectation_is_that_of_n_rollouts(
    gate: dict[str, object], advantage: str, aggregation: str, responses: list[Response]
) -> None:
    shared = {f"gate__{name}": value for name, value in gate.items()}
    shared |= {"rl__advantage": advantage, "loss__aggregation": aggregation}
    full, probed = config(**shared), config(**shared, rollout__probe=K)
    expected, found, samples = np.zeros(2), np.zeros(2), 0.0
    for probability, outcome in outcomes(responses):
        all_sampled = visit(full, outcome, None)
        by_probe = visit(probed, outcome, Probe(probed, gate_of(probed)))
        assert by_probe.decision == all_sampled.decision
        expected += probability * rl_gradient(full, all_sampled, outcome)
        found += probability * rl_gradient(probed, by_probe, outcome)
        samples += probability * len(by_probe.rollouts)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert samples < N


@pytest.mark.parametrize(("n", "k", "p"), [(8, 4, 0.1), (8, 4, 0.5), (8, 2, 0.9), (6, 3, 0.02)])
def test_training_on_all_where_a_question_went_on_would_be_biased(n: int, k: int, p: float) -> None:
    """By the factor that hpt/method/probe.py gives: a sum over which of n rollouts of score 0 or 1 are right."""
    q = 1 - p
    gradients = {1: q, 0: -p}  # d log pi by the logit of "right": their mean is 0

    def estimate(scores: Sequence[int]) -> float:
        mean = sum(scores) / len(scores)
        terms = [(score - mean) * gradients[score] for score in scores]
        return sum(terms) / (len(scores) - 1)  # leave-one-out

    biased = 0.0
    for scores in itertools.product((0, 1), repeat=n):
        probability = p ** sum(scores) * q ** (n - sum(scores))
        mixed = 0 < sum(scores[:k]) < k
        biased += probability * estimate(scores[:k] if mixed else scores)
    excess = k * (n - k) / (n * (n - 1)) * (p ** (k - 1) + q ** (k - 1))
    excess += (n - k) * (n - k - 1) / (n * (n - 1)) * (p**k + q**k)
    assert biased == pytest.approx(p * q * (1 + excess), abs=1e-12)
    assert excess <= (n - k) / n


GRID = [0.0, 0.25, 0.5, 1.0]


@given(
    gamma=st.sampled_from([0.0, 1 / 8, 1 / 3, 0.5, 2 / 3, 0.9]) | st.floats(0, 0.99),
    first=st.lists(st.sampled_from(GRID), min_size=2, max_size=5),
    more=st.integers(1, 3),
)
def test_settled_is_when_no_completion_changes_the_decision(gamma: float, first: list[float], more: int) -> None:
    gate, n = switch(gamma), len(first) + more
    completions = itertools.product(GRID, repeat=more)
    decisions = {gate((sum(first) + sum(rest)) / n) for rest in completions}
    assert settled(gate, sum(first), len(first), n) == (len(decisions) == 1)
    if len(decisions) == 1:
        assert decisions == {gate(sum(first) / len(first))}  # what the trainer's gate reads of a stopped question


def ended(id: str, right: int, of: int, *, alpha: float = 1.0) -> Experience:
    outcome = [BINARY[0]] * right + [BINARY[1]] * (of - right)
    experience = Experience(Question(id, "?", ""), [0])
    experience.add([each.rollout for each in outcome], judgement(outcome))
    experience.decision = experience.decision._replace(alpha=alpha)
    return experience


def test_how_the_last_visit_ended_decides_order_and_number() -> None:
    probe = Probe(settings := config(rollout__probe=K, gate__gamma=1), gate_of(config(gate__gamma=1)))
    visits = [
        ended("always", 3, 3),
        ended("sometimes", 2, 3),
        ended("never", 0, 5, alpha=0),
        ended("few", 1, 5, alpha=0),
    ]
    assert [solved(each) for each in visits] == ["always", "sometimes", "never", "never"]
    probe.remember(visits)
    probe.remember([Experience(Question("unjudged", "?", ""), [0])])

    def order(of: Probe) -> list[tuple[str, int]]:
        new = [
            Experience(Question(id, "?", ""), [0])
            for id in ("first", "always", "few", "unjudged", "sometimes", "never")
        ]
        return [(each.question.id, of.missing(each)) for each in of.first(new)]

    expected = [("few", N), ("never", N), ("sometimes", K), ("first", K), ("unjudged", K), ("always", K)]
    assert order(probe) == expected
    resumed = Probe(settings, gate_of(settings))
    assert order(resumed) == [(id, K) for id in ("first", "always", "few", "unjudged", "sometimes", "never")]
    resumed.load_state_dict(probe.state_dict())
    assert order(resumed) == expected
    resumed.remember([ended("never", 1, 5)])
    assert ("never", K) in order(resumed)


def test_a_question_that_got_n_at_once_trains_on_all_of_them() -> None:
    settings = config(rollout__probe=K)
    probe = Probe(settings, gate_of(settings))
    probe.remember([ended("q", 0, N, alpha=0)])
    outcome = [BINARY[1]] * (N - 1) + [BINARY[0]]
    experience = visit(settings, outcome, probe)
    assert len(experience.rollouts) == len(experience.rl_rollouts) == N
    assert [rollout.advantage for rollout in experience.rollouts] == pytest.approx([-0.2 * 1] * 4 + [0.8])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollout__probe": N}, f"rollout.probe = {N} must be below rollout.n = {N}"),
        ({"gate__kind": "both"}, 'gate.kind is "both"'),
        ({"gate__kind": "table", "gate__table": "soft-1"}, 'gate.kind is "table"'),
        ({"rl__advantage": "mean_std"}, "rl.advantage 'mean_std' depends on the number of rollouts"),
        ({"rl__advantage": "my:own"}, "rl.advantage 'my:own' depends"),
        ({"loss__aggregation": "token"}, 'loss.aggregation "token"'),
        ({"loss__aggregation": "official"}, 'loss.aggregation "official"'),
        ({"loss__entropy_weights": True}, "loss.entropy_weights = true"),
        ({"rollout__dynamic_rounds": 2, "gate__kind": "rl"}, "rollout.dynamic_rounds = 2 exclude each other"),
        ({"off_policy__coef": 1.0, "off_policy__advantage": "mean"}, "the demonstration is in the group"),
    ],
)
def test_what_would_not_be_exact_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=message):
        config(**({"rollout__probe": K} | settings))
