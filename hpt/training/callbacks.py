"""What only some methods do around the updates of a step. `assemble` attaches what the recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from upge.importance import ImportanceRatio

from hpt.config.schema import Config
from hpt.method.entropy_weights import weigh_by_entropy
from hpt.method.micro_batches import MicroBatcher
from hpt.method.rows import Row, Signal
from hpt.model.critic import Critic
from hpt.model.policy import Policy
from hpt.model.reference import Reference
from hpt.training.metrics import StepStats
from hpt.training.phases import PhaseClock


class Callback:
    """Hooks around the optimizer updates of a step; each is a no-op unless overridden. All ranks call them."""

    def before_updates(self, updates: Sequence[Sequence[Row]], stats: StepStats) -> None:
        """Before the first update, with the rows of each. The policy is in eval mode."""

    def before_update(self, rows: Sequence[Row], stats: StepStats) -> None:
        """Before the micro-batches of one update. The policy is in train mode."""

    def after_update(self, rows: Sequence[Row], stats: StepStats) -> None:
        """After one update."""

    def after_updates(self) -> None:
        """At the end of a step."""

    def state_dict(self) -> dict[str, Any]:
        """This rank's state for a checkpoint, under its own keys."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reads its keys from the state of all callbacks."""


class OldLogprobs(Callback):
    """The policy's log-probabilities before the first update (log pi_old), for ratios and importance sampling."""

    def __init__(self, policy: Policy, batches: MicroBatcher) -> None:
        self.policy = policy
        self.batches = batches

    def before_updates(self, updates: Sequence[Sequence[Row]], stats: StepStats) -> None:
        for rows in updates:
            for row, logprobs in self.batches.measure(rows, self.policy.logprobs):
                row.old_logprobs = logprobs
        if self.batches.world.main:  # counts are added over ranks, and every rank has the numbers of all rows
            for rows in updates:
                stats.counts.add_mismatch_of_rows(rows)


class ImportanceSampling(Callback):
    """Counts the importance ratios by which the loss multiplies the policy term; needs `OldLogprobs` before it.

    A row whose ratios are all 0 is left out, unless it has an entropy bonus or a KL penalty.
    """

    def __init__(self, importance: ImportanceRatio, entropy_coef: float) -> None:
        self.importance = importance
        self.entropy_coef = entropy_coef

    def before_updates(self, updates: Sequence[Sequence[Row]], stats: StepStats) -> None:
        truncated = self.importance.high if self.importance.mode == "clip" else 0.0
        for row in (row for rows in updates for row in rows):
            if row.old_logprobs is None or row.rollout_logprobs is None:
                continue
            old, rollout = torch.tensor(row.old_logprobs), torch.tensor(row.rollout_logprobs)
            sequence = torch.zeros_like(old, dtype=torch.int64)
            ratio = self.importance.of(old, rollout, sequence_ids=sequence, mask=~rollout.isnan())
            stats.add_importance(ratio, truncated)
            if self.entropy_coef == 0 and not ratio.any():
                row.advantage = 0.0


class ReferenceLogprobs(Callback):
    """What the KL penalty reads. Only rollouts have a penalty: its estimators need samples of the policy."""

    def __init__(self, reference: Reference, batches: MicroBatcher, clock: PhaseClock) -> None:
        self.reference = reference
        self.batches = batches
        self.clock = clock

    def before_updates(self, updates: Sequence[Sequence[Row]], stats: StepStats) -> None:
        with self.clock.phase("reference"), self.reference.on_device() as logprobs_of:
            for rows in updates:
                rollouts = [row for row in rows if row.signal == Signal.RL]
                for row, logprobs in self.batches.measure(rollouts, logprobs_of):
                    row.ref_logprobs = logprobs


class EntropyWeights(Callback):
    """SRFT's weights, from entropies measured just before each update."""

    def __init__(self, policy: Policy, batches: MicroBatcher) -> None:
        self.policy = policy
        self.batches = batches

    def before_update(self, rows: Sequence[Row], stats: StepStats) -> None:
        for row, entropies in self.batches.measure(rows, self.policy.entropies):
            weigh_by_entropy(row, entropies)


class CriticUpdates(Callback):
    """Trains the critic beside the policy, on the same rows."""

    def __init__(self, critic: Critic) -> None:
        self.critic = critic

    def after_update(self, rows: Sequence[Row], stats: StepStats) -> None:
        stats.add_critic_update(*self.critic.learn(rows))

    def after_updates(self) -> None:
        self.critic.engine.end_step()

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])


def callbacks_of(
    config: Config,
    policy: Policy,
    batches: MicroBatcher,
    clock: PhaseClock,
    *,
    reference: Reference | None,
    critic: Critic | None,
) -> list[Callback]:
    """The callbacks that a recipe asks for, in the order they need."""
    callbacks: list[Callback] = []
    if policy.needs_old_logprobs or policy.importance:
        callbacks.append(OldLogprobs(policy, batches))
    if policy.importance:
        callbacks.append(ImportanceSampling(policy.importance, config.loss.entropy_coef))
    if reference:
        callbacks.append(ReferenceLogprobs(reference, batches, clock))
    if config.loss.entropy_weights:
        callbacks.append(EntropyWeights(policy, batches))
    if critic:
        callbacks.append(CriticUpdates(critic))
    return callbacks
