"""What a step knows about a question: made when it is drawn, completed by verifier, gate and advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hpt.config.schema import Config
from hpt.data.conversation import Conversation
from hpt.data.questions import Question
from hpt.method.gate import NOTHING, ONLY_ROLLOUTS, Decision, Gate
from hpt.rollout import Rollout
from hpt.verify import GroupRewards, Judgement


@dataclass
class Experience:
    """A question on its way through a step: rollouts, their verdicts, the gate's decision, advantages."""

    question: Question
    prompt: list[int]  # token ids
    rollouts: list[Rollout] = field(default_factory=list)  # none where the gate asks for none
    decision: Decision = NOTHING
    demonstration: list[int] = field(default_factory=list)  # response tokens, where the decision trains on them
    demonstration_reward: float | None = 1.0  # as a member of the group; None where no reward applies
    conversation: Conversation | None = None  # what SFT trains on instead, with data.loss_on "all" and earlier turns
    demonstration_advantage: float = 1.0  # of its off-policy row
    rewards: GroupRewards = field(default_factory=GroupRewards)  # empty where the recipe lists none
    trained: bool = True  # dynamic sampling leaves questions out
    probe: int | None = None  # with rollout.probe: RL trains on the first so many rollouts only; None: on all
    overruled: bool = False  # the gate asked for a demonstration, and the question has none

    def add(self, rollouts: Sequence[Rollout], judgement: Judgement) -> None:
        """Takes rollouts with what is known about them and, if it is in their group, about the demonstration."""
        self.rollouts = [*self.rollouts, *rollouts]
        self.rewards.extend(judgement.rewards)
        for number, rollout in enumerate(rollouts):
            rollout.verdict = judgement.verdicts[number] if judgement.verdicts else None
            rollout.rewards = {name: values[number] for name, values in judgement.rewards.values.items()}
            rollout.earned = judgement.earned[number]
        if judgement.rewards.values and len(judgement.earned) > len(rollouts):
            self.demonstration_reward = judgement.earned[-1]

    @property
    def rl_rollouts(self) -> list[Rollout]:
        """The rollouts that RL trains on, where the gate's decision has RL."""
        return self.rollouts[: self.probe]

    def decide(self, gate: Gate) -> None:
        """Takes the gate's decision. Without a demonstration it is RL on its rollouts, whatever the gate says."""
        self.decision = gate(self.score)
        if self.question.demonstration is None:
            self.overruled = self.decision.uses_demonstration
            self.decision = ONLY_ROLLOUTS

    def demonstration_in_group(self, config: Config) -> bool:
        """Whether its demonstration belongs to the group that its advantages are computed over."""
        return config.demonstration_in_group and self.question.demonstration is not None

    @property
    def judged(self) -> bool:
        """Whether its rollouts have verdicts."""
        return any(rollout.verdict for rollout in self.rollouts)

    @property
    def imitated_tokens(self) -> int:
        """The tokens that SFT trains on."""
        return sum(self.conversation.mask) if self.conversation else len(self.demonstration)

    @property
    def score(self) -> float:
        """P: the mean score of its rollouts; 0 without rollouts, or where no verdict is asked for."""
        if not self.judged:
            return 0.0
        return sum(rollout.score for rollout in self.rollouts) / len(self.rollouts)

    @property
    def mixed(self) -> bool:
        """Whether its rollouts have different rewards, penalties for length aside."""
        return len({rollout.unpenalised_reward for rollout in self.rollouts} - {None}) > 1
