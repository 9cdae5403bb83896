"""Questions without a demonstration beside others with one: what their rows are, and how much probing samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.method.advantage import group_advantages
from hpt.method.experience import Experience
from hpt.method.gate import ONLY_ROLLOUTS, gate_of
from hpt.method.probe import Probe
from hpt.method.rows import Row, token_rows
from hpt.rollout import Rollout
from hpt.support.errors import ConfigError
from hpt.verify import GroupRewards, Judgement
from hpt.verify.verdict import Verdict

KEEP = "data.missing_demonstrations=rollouts"
FEW_RIGHT = "gate={kind: switch, gamma: 2}"
QUESTIONS = [Question(f"q{number}", "?", "", "a demonstration") for number in range(6)]
HALF = [replace(question, demonstration=None) if i % 2 else question for i, question in enumerate(QUESTIONS)]
RIGHT = [0, 0, 1, 1, 3, 4]  # of each question's rollouts, the first ones


def rollouts(number: int, count: int) -> list[Rollout]:
    return [Rollout([number] * (i + 1), [-1.0] * (i + 1), "stop") for i in range(count)]


def verdicts(right: int, count: int) -> list[Verdict]:
    return [Verdict("correct" if i < right else "incorrect", float(i < right)) for i in range(count)]


def decided(config: Config, questions: Sequence[Question]) -> list[Experience]:
    """With rollouts of different lengths, the gate's decisions and advantages."""
    experiences = []
    for number, question in enumerate(questions):
        experience = Experience(question, [number, number])
        judged = verdicts(RIGHT[number], config.sampled)
        experience.add(rollouts(number, config.sampled), Judgement(judged, GroupRewards(), [None] * config.sampled))
        experience.decide(gate_of(config))
        if experience.decision.uses_demonstration:
            experience.demonstration = [7] * 5
        experiences.append(experience)
    group_advantages(config)(experiences)
    return experiences


def rows_of(experiences: Sequence[Experience], config: Config) -> list[list[Row]]:
    """By question."""
    rows = [replace(row, index=0) for row in token_rows(experiences, config)]
    return [[row for row in rows if row.tokens[0] == number] for number in range(len(experiences))]


@pytest.mark.parametrize(
    ("settings", "rl_alone"),
    [
        (["method=hpt", FEW_RIGHT], []),
        (["method=hpt-mix", FEW_RIGHT], []),
        (["method=hpt-offpolicy", FEW_RIGHT], []),
        (["method=hpt", "gate={kind: table, table: soft-3}"], ["gate.table=null"]),
        (["method=luffy"], ["off_policy.coef=0", "rollout.n=3"]),
        (["method=luffy", "rl.advantage=mean_std"], ["off_policy.coef=0", "rollout.n=3"]),
        (["method=srft", "loss.entropy_coef=0.1"], ["off_policy.coef=0", "rollout.n=3"]),
    ],
)
def test_rows_are_those_of_rl_alone_without_a_demonstration_and_the_methods_own_with_one(
    settings: list[str], rl_alone: list[str]
) -> None:
    config = load_config("demo", ["rollout.n=4", *settings, KEEP])
    only_rl = load_config("demo", ["rollout.n=4", *settings, "gate.kind=rl", *rl_alone])
    half = decided(config, HALF)
    found = rows_of(half, config)
    own = rows_of(decided(config, QUESTIONS), config)
    rl = rows_of(decided(only_rl, QUESTIONS), only_rl)
    for number, experience in enumerate(half):
        assert found[number] == (own if experience.question.demonstration else rl)[number]
        assert experience.decision == ONLY_ROLLOUTS or experience.question.demonstration
    assert own != rl
    wanted = gate_of(config)
    assert [each.overruled for each in half] == [
        each.question.demonstration is None and wanted(each.score).uses_demonstration for each in half
    ]
    assert any(each.overruled for each in half)


def test_a_mean_over_tokens_counts_the_tokens_that_are_there() -> None:
    config = load_config("demo", ["method=luffy", "rollout.n=4", "loss.aggregation=token", KEEP])
    tokens = 6 * (1 + 2 + 3) + 3 * 5  # of rollouts, and of the three demonstrations
    assert {row.weight for row in token_rows(decided(config, HALF), config)} == {1 / tokens}


def test_probing_asks_no_more_of_a_question_that_can_only_go_to_rl() -> None:
    config = load_config("demo", ["method=hpt", "rollout.n=4", "rollout.probe=2", KEEP])
    probe = Probe(config, gate_of(config))
    experiences = [Experience(question, [0]) for question in HALF[:2]]
    for experience in probe.first(experiences):
        experience.add(rollouts(0, 2), Judgement(verdicts(0, 2), GroupRewards(), [None] * 2))
    assert probe.open(experiences) == experiences[:1]


def test_a_group_of_one_rollout_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves questions without a demonstration a group of 1 rollout"):
        load_config("demo", ["method=luffy", "rollout.n=2", KEEP])
    load_config("demo", ["method=luffy", "rollout.n=2"])
    load_config("demo", ["method=srft", "rollout.n=2", KEEP])  # "sign" has no baseline
