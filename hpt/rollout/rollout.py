"""A rollout: one sampled response, from the engine that samples it to the advantage it is trained with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from hpt.verify import Status, Verdict

Advantage: TypeAlias = float | list[float]
"""Of a response: one number, or one per token."""


@dataclass(frozen=True)
class CriticValues:
    """What a critic says about a rollout, one number per response token."""

    before: list[float]  # V of the state before the token, under the critic that the advantages come from
    returns: list[float]  # the target of V: advantage estimate + before


@dataclass
class Rollout:
    """One sampled response. The engine makes it; the steps that follow complete it."""

    tokens: list[int]
    logprobs: list[float]
    """log pi(token) in nats at the sampling temperature (1 where greedy), before any top-p cut; one per token.

    NaN where the engine does not know it: vLLM in an evaluation, or with top_p < 1 and a temperature other than 1.
    """
    finish_reason: Literal["stop", "length"]  # ended by a stop token, or at the token limit
    text: str = ""  # what the verifier reads
    verdict: Verdict | None = None  # by the verifier, or by the reward of gate.reads; None where nothing asks
    rewards: dict[str, float | None] = field(default_factory=dict)  # of each of the recipe's rewards, by name
    earned: float | None = None  # their weighted sum; None where none applies
    overlong_penalty: float | None = None  # <= 0, with rl.overlong
    advantage: Advantage = 0.0
    values: CriticValues | None = None  # with a critic

    @property
    def verified(self) -> Verdict:
        """The verdict, which must be there."""
        assert self.verdict is not None, "this rollout has not been verified"
        return self.verdict

    @property
    def score(self) -> float:
        """What the verdict is worth; the gate reads it."""
        return self.verified.score

    @property
    def status(self) -> Status:
        return self.verified.status

    @property
    def unpenalised_reward(self) -> float | None:
        """The weighted sum of its rewards, or its score where the recipe lists none; None where none applies."""
        return self.earned if self.rewards else self.score

    @property
    def reward(self) -> float | None:
        """What RL is given: as above and, with `rl.overlong`, with a penalty for its length."""
        reward = self.unpenalised_reward
        return None if reward is None else reward + (self.overlong_penalty or 0.0)
