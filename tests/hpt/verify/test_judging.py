"""Verdicts and rewards of a question's rollouts, joined as a recipe says."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from hpt.config.recipe import load_config
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.optim.engine import Update
from hpt.rollout import Rollout
from hpt.training.metrics import StepStats, step_metrics
from hpt.verify import GroupRewards, Judgement, Judging, Response, RewardVerdicts, TrainerState, Verdict

STATE = TrainerState(0, 1, 0.0)
QUESTIONS = [Question(f"q{number}", "?", "yes", demonstration="yes, yes") for number in range(2)]
REWARDS = "rewards=[{function: 'm:length', weight: 0.5}, 'm:known', verifier]"


class Verifier:
    """Right is what equals the answer."""

    def __init__(self) -> None:
        self.found: dict[Hashable, Verdict] = {}

    @contextmanager
    def scoring(self) -> Any:
        yield self

    def add(self, key: Hashable, response: str, answer: str) -> None:
        self.found[key] = Verdict("correct", 1.0) if response == answer else Verdict("timeout", 0.0)

    def verdicts(self) -> dict[Hashable, Verdict]:
        return self.found


class Functions:
    """The length of a text, and None for a text with a "?" in it."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.found: dict[Hashable, GroupRewards] = {}

    @contextmanager
    def calling(self, state: TrainerState, only: str | None = None) -> Any:
        yield self

    def add(self, key: Hashable, question: Question, completions: Sequence[Any]) -> None:
        texts = [completion.text for completion in completions]
        self.calls.append(texts)
        values: dict[str, list[float | None]] = {
            "length": [float(len(text)) for text in texts],
            "known": [None if "?" in text else 1.0 for text in texts],
        }
        self.found[key] = GroupRewards(values, dict.fromkeys(values, 0))

    def results(self) -> dict[Hashable, GroupRewards]:
        return self.found


def judge(*settings: str) -> tuple[list[Judgement], Functions]:
    config = load_config("demo", ["rollout.n=3", *settings])
    functions, verifier = Functions(), Verifier()
    demonstration: Callable[[Question], Response] = lambda question: Response(question.demonstration or "", [1])
    any_verifier: Any = verifier
    any_functions: Any = functions if config.rewards else None
    texts = ["yes", "no?", "maybe"][: config.sampled]
    with Judging(config, any_verifier, any_functions, STATE, demonstration) as judging:
        for number in reversed(range(len(texts))):
            assert functions.calls == []
            judging.add(1, number, len(texts), QUESTIONS[1], Response(texts[number], [1]))
        found = judging.results()
    return [found[1]], functions


def test_without_rewards_the_verdict_is_all_there_is() -> None:
    (judgement,), functions = judge("method=hpt")
    assert judgement.verdicts is not None
    assert [verdict.score for verdict in judgement.verdicts] == [1, 0, 0]
    assert functions.calls == [] == list(judgement.rewards.values)


def test_the_reward_is_the_weighted_sum_of_what_applies() -> None:
    (judgement,), functions = judge("method=hpt", REWARDS)
    assert functions.calls == [["yes", "no?", "maybe"]]
    assert judgement.rewards.values == {"length": [3, 3, 5], "known": [1, None, 1], "verifier": [1, 0, 0]}
    assert judgement.rewards.failures == {"length": 0, "known": 0, "verifier": 2}
    assert judgement.earned == [3.5, 1.5, 3.5]


def test_nothing_is_earned_where_no_reward_applies() -> None:
    (judgement,), _ = judge("method=grpo", "rewards=m:known")
    assert judgement.earned == [1, None, 1]
    assert judgement.verdicts is None


@pytest.mark.parametrize(("reads", "right"), [("length", [0, 0, 1]), ("known", [1, 0, 1])])
def test_the_gate_reads_a_reward_from_its_threshold_on(reads: str, right: list[float]) -> None:
    threshold = {"length": 5, "known": 1}[reads]
    (judgement,), _ = judge("method=hpt", REWARDS, f"gate.reads={reads}", f"gate.threshold={threshold}")
    assert judgement.verdicts is not None
    assert [verdict.score for verdict in judgement.verdicts] == right


def test_a_demonstration_of_the_group_is_rewarded_with_it() -> None:
    (judgement,), functions = judge("method=luffy", REWARDS)
    assert functions.calls == [["yes", "no?", "yes, yes"]]
    assert judgement.earned == [3.5, 1.5, 5.0]
    assert judgement.verdicts is not None
    assert len(judgement.verdicts) == 2


def test_an_evaluation_without_answers_asks_the_reward() -> None:
    functions: Any = Functions()
    mark = RewardVerdicts(functions, "length", 4, STATE).mark
    verdicts = mark(QUESTIONS, [[Response("four", [1])], [Response("one", [1])]])
    assert [[verdict.score for verdict in group] for group in verdicts] == [[1.0], [0.0]]


def test_the_metrics_of_each_reward() -> None:
    """Of 2 x 3 rollouts: sums and counts are exact, and the std is that of the sample."""
    experiences = []
    for question in QUESTIONS:
        (judgement,), _ = judge("method=hpt", REWARDS)
        rollouts = [Rollout([1], [0.0], "stop") for _ in range(3)]
        experiences.append(Experience(question, [1]))
        judgement.rewards.metrics = {"seen": [3.0]}
        experiences[-1].add(rollouts, judgement)
    metrics = _rollout_metrics(experiences)
    assert (metrics["reward/sum"], metrics["reward/count"]) == (17, 6)
    assert (metrics["reward/length/sum"], metrics["reward/length/count"]) == (22, 6)
    assert metrics["reward/length/std"] == pytest.approx((16 / 15) ** 0.5)
    assert (metrics["reward/known/mean"], metrics["reward/known/count"], metrics["reward/known/std"]) == (1, 4, 0)
    assert metrics["reward/verifier/failures"] == 4
    assert (metrics["logged/seen/mean"], metrics["logged/seen/count"]) == (3, 2)
    assert (metrics["gate/some"], metrics["verify/correct"], metrics["verify/timeout"]) == (2, 2, 4)


def _rollout_metrics(experiences: list[Experience]) -> dict[str, float]:
    stats = StepStats()
    stats.updates.append(Update(0.0, 0.0, False))
    return step_metrics(experiences, stats, {"step": 1.0})
