"""The critic of PPO (arXiv 1707.06347): a value of the state before every response token.

Its body is a copy of the policy's at the start of the run, with a scalar head that starts at 0. Both are trained by the
critic's own optimizer engine. With critic.gamma = 1 values are undiscounted rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hpt.config.sections.method import CriticConfig
from hpt.method.advantage import STD_FLOOR, gae
from hpt.method.experience import Experience
from hpt.method.micro_batches import MicroBatch, MicroBatcher
from hpt.method.rows import Row, Signal
from hpt.rollout import CriticValues, Rollout

if TYPE_CHECKING:
    from hpt.optim.engine import OptimizerEngine, Update


class ValueModel(torch.nn.Module):
    """A decoder with a scalar head: one number per position."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = decoder
        self.head = torch.nn.Linear(decoder.config.get_text_config().hidden_size, 1, device=decoder.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """(N,) float32 values of the states before the response tokens."""
        states = self.decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        return self.head(states.last_hidden_state.flatten(0, 1)[batch.positions].float()).squeeze(-1)


class Critic:
    """Estimates advantages token by token (GAE), and learns from the rewards."""

    def __init__(
        self, model: ValueModel, engine: OptimizerEngine, settings: CriticConfig, batches: MicroBatcher
    ) -> None:
        self.model = model
        self.engine = engine
        self.settings = settings
        self.batches = batches

    def estimate_advantages(self, experiences: Sequence[Experience]) -> None:
        """Sets advantages, standardised over all tokens given, and the values that `learn` reads.

        A rollout to which no reward applies keeps advantage 0 and no values.
        """
        rollouts: list[Rollout] = []
        rewards: list[float] = []
        rows: list[Row] = []
        for experience in experiences:
            for rollout in experience.rollouts:
                if rollout.reward is None:
                    continue
                tokens = experience.prompt + rollout.tokens
                rows.append(Row(tokens, len(experience.prompt), Signal.RL, weight=1.0, index=len(rows)))
                rollouts.append(rollout)
                rewards.append(rollout.reward)
        if not rows:
            return
        self.model.eval()
        values = [own for _, own in self.batches.measure(rows, self._values)]
        estimates = [
            gae(reward, own, self.settings.gamma, self.settings.lam)
            for reward, own in zip(rewards, values, strict=True)
        ]
        all_estimates = np.concatenate(estimates)
        mean, scale = all_estimates.mean(), all_estimates.std() + STD_FLOOR
        for rollout, before, estimate in zip(rollouts, values, estimates, strict=True):
            rollout.advantage = ((np.asarray(estimate) - mean) / scale).tolist()
            rollout.values = CriticValues(before, [a + v for a, v in zip(estimate, before, strict=True)])

    def learn(self, rows: Sequence[Row]) -> tuple[float, Update]:
        """One update on the mean over tokens of the clipped squared error; returns its loss before the update.

        1/2 max((V - R)^2, (clip(V, V_before - clip, V_before + clip) - R)^2)
        """
        rows = [replace(row, advantage=1.0, weight=1.0) for row in rows if row.values is not None]
        tokens = sum(row.response_length for row in rows)
        limit = float("inf") if self.settings.clip is None else self.settings.clip
        total = 0.0
        self.model.train()
        for batch in self.batches(rows):
            values = self.model(batch)
            targets = [row.values for row in batch.rows if row.values is not None]
            returns = values.new_tensor([value for own in targets for value in own.returns])
            before = values.new_tensor([value for own in targets for value in own.before])
            clipped = before + (values - before).clamp(-limit, limit)
            error = torch.maximum((values - returns).square(), (clipped - returns).square())
            loss = 0.5 * error.sum() / tokens
            self.engine.backward(loss)
            total += loss.item()
        return total, self.engine.step()

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "engine": self.engine.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.engine.load_state_dict(state["engine"])

    @torch.no_grad()
    def _values(self, batch: MicroBatch) -> torch.Tensor:
        return self.model(batch)
