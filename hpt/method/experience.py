"""What a step knows about a question: made when it is drawn, completed by verifier, gate and advantages."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpt.data.conversation import Conversation
from hpt.data.questions import Question
from hpt.method.gate import NOTHING, Decision
from hpt.rollout import Rollout


@dataclass
class Experience:
    """A question on its way through a step: rollouts, their verdicts, the gate's decision, advantages."""

    question: Question
    prompt: list[int]  # token ids
    rollouts: list[Rollout] = field(default_factory=list)  # none where the gate asks for none
    decision: Decision = NOTHING
    demonstration: list[int] = field(default_factory=list)  # response tokens, where the decision trains on them
    conversation: Conversation | None = None  # what SFT trains on instead, with data.loss_on "all" and earlier turns
    demonstration_advantage: float = 1.0  # of its off-policy row
    trained: bool = True  # dynamic sampling leaves questions out

    @property
    def imitated_tokens(self) -> int:
        """The tokens that SFT trains on."""
        return sum(self.conversation.mask) if self.conversation else len(self.demonstration)

    @property
    def score(self) -> float:
        """P: the mean score of its rollouts; 0 without rollouts."""
        if not self.rollouts:
            return 0.0
        return sum(rollout.score for rollout in self.rollouts) / len(self.rollouts)

    @property
    def mixed(self) -> bool:
        """Whether its rollouts have different scores."""
        return len({rollout.score for rollout in self.rollouts}) > 1
