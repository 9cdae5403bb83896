"""How right rollouts are, and what they earn: the verifier and the reward functions of a recipe, joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from hpt.config.sections.rewards import VERIFIER
from hpt.data.questions import Question
from hpt.verify.reward_call import TrainerState
from hpt.verify.rewards import Completion, GroupRewards, RewardFunctions, weighted_sum
from hpt.verify.verdict import Verdict
from hpt.verify.verifier import Verifier

if TYPE_CHECKING:
    from hpt.config.schema import Config


@dataclass(frozen=True)
class Judgement:
    """What is known about the rollouts of a question.

    verdicts: of the rollouts, by what `gate.reads` names; None where nothing asks.
    rewards: empty where a recipe lists none. Its lists, and `earned`, go on with the demonstration where that belongs
        to the question's group.
    earned: the weighted sum of each completion's rewards; None where none applies.
    """

    verdicts: list[Verdict] | None
    rewards: GroupRewards
    earned: list[float | None]


class Judging:
    """Judges the rollouts of a batch of questions, each as soon as it comes; a context manager.

    Functions are called on a question once all rollouts of its group are there, and its demonstration, if that belongs
    to the group.

    demonstration: a question's, as a completion.
    """

    def __init__(
        self,
        config: Config,
        verifier: Verifier,
        functions: RewardFunctions | None,
        state: TrainerState,
        demonstration: Callable[[Question], Completion],
    ) -> None:
        self._config = config
        self._demonstration = demonstration
        self._weights = config.reward_weights
        self._verifier = verifier
        self._functions = functions
        self._state = state
        self._groups: dict[int, list[Completion | None]] = {}  # by index of the question
        self._with_demonstration: set[int] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            verified, functions = self._config.needs_answers, self._functions
            self._scoring = stack.enter_context(self._verifier.scoring()) if verified else None
            self._calls = stack.enter_context(functions.calling(self._state)) if functions else None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, index: int, number: int, size: int, question: Question, rollout: Completion) -> None:
        """Starts on rollout `number` of the question at `index`, whose group has `size` rollouts."""
        group = self._groups.setdefault(index, [None] * size)
        group[number] = rollout
        if self._scoring:
            self._scoring.add((index, number), rollout.text, question.gold)
        if self._config.rewards and None not in group:
            self._reward(index, question, [each for each in group if each is not None])

    def _reward(self, index: int, question: Question, completions: list[Completion]) -> None:
        if self._config.demonstration_in_group and question.demonstration is not None:
            self._with_demonstration.add(index)
            completions.append(self._demonstration(question))
            if self._scoring and VERIFIER in self._weights:
                self._scoring.add((index, len(completions) - 1), completions[-1].text, question.gold)
        if self._calls:
            self._calls.add(index, question, completions)

    def results(self) -> dict[int, Judgement]:
        """Waits for all judgements, by index. RewardError where a user's function failed and is to stop the run."""
        verdicts = self._scoring.verdicts() if self._scoring else {}
        rewards = self._calls.results() if self._calls else {}
        found = {}
        for index, group in self._groups.items():
            members = len(group) + (index in self._with_demonstration)
            own = [verdicts[index, number] for number in range(members) if (index, number) in verdicts]
            found[index] = self._judgement(own, rewards.get(index, GroupRewards()), len(group), members)
        return found

    def _judgement(self, verdicts: list[Verdict], rewards: GroupRewards, sampled: int, members: int) -> Judgement:
        """sampled: rollouts; members: those and, if it is in their group, the demonstration."""
        if VERIFIER in self._weights:
            rewards.values[VERIFIER] = [verdict.score for verdict in verdicts]
            rewards.failures[VERIFIER] = sum(verdict.status == "timeout" for verdict in verdicts)
        rewards.values = {name: rewards.values[name] for name in self._weights}
        earned = [
            weighted_sum({name: values[place] for name, values in rewards.values.items()}, self._weights)
            for place in range(members)
        ]
        gate = self._config.gate
        if gate.reads != VERIFIER:
            assert gate.threshold is not None
            return Judgement(verdicts_of(rewards.values[gate.reads][:sampled], gate.threshold), rewards, earned)
        return Judgement(verdicts[:sampled] or None, rewards, earned)


def verdicts_of(values: Sequence[float | None], threshold: float) -> list[Verdict]:
    """Right from the threshold on. A reward that does not apply is not right."""
    right = [value is not None and value >= threshold for value in values]
    return [Verdict("correct" if each else "incorrect", float(each)) for each in right]


class RewardVerdicts:
    """Judges by one reward and its threshold, for evaluations on questions without answers."""

    def __init__(self, functions: RewardFunctions, name: str, threshold: float, state: TrainerState) -> None:
        self._functions = functions
        self._name = name
        self._threshold = threshold
        self._state = state

    def mark(self, questions: Sequence[Question], groups: Sequence[Sequence[Completion]]) -> list[list[Verdict]]:
        """As `Verifier.mark`."""
        with self._functions.calling(self._state, only=self._name) as calls:
            for index, (question, group) in enumerate(zip(questions, groups, strict=True)):
                calls.add(index, question, group)
            results = calls.results()
        values = [results[index].values[self._name] for index in range(len(questions))]
        return [verdicts_of(own, self._threshold) for own in values]
