"""The critic of PPO (arXiv 1707.06347): a value of the state before every response token.

Its body is a copy of the policy's at the start of the run, with a scalar head that starts at 0; body and head are
trained by an optimizer of their own. Values are undiscounted scores where critic.gamma = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hpt.config.schema import Config
from hpt.method.advantage import STD_FLOOR, gae
from hpt.method.rows import RL, MicroBatch, Row, Values
from hpt.optim.local import Engine, Update
from hpt.rollout import Rollout

MicroBatches = Callable[[Sequence[Row]], Iterator[MicroBatch]]


class ValueModel(torch.nn.Module):
    """hidden states of a decoder -> one number a position."""

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
    """Judges rollouts token by token, and learns from their scores."""

    def __init__(self, decoder: PreTrainedModel, config: Config) -> None:
        self.settings = config.critic
        self.model = ValueModel(decoder)
        optimizer = config.optimizer.model_copy(update={"lr": config.critic.lr})
        self.engine = Engine(self.model, config.model_copy(update={"optimizer": optimizer}))

    def judge(
        self,
        prompts: Sequence[list[int]],
        rollouts: Sequence[Sequence[Rollout]],
        scores: Sequence[Sequence[float]],
        micro_batches: MicroBatches,
    ) -> tuple[list[list[list[float]]], list[list[Values]]]:
        """Per question and rollout: advantages, whitened over all tokens given, and what the critic learns from."""
        flat = [
            Row(prompt + rollout.tokens, len(prompt), RL, weight=1.0)
            for prompt, group in zip(prompts, rollouts, strict=True)
            for rollout in group
        ]
        before = self._values(flat, micro_batches)
        rewards = [score for group in scores for score in group]
        raw = [
            gae(score, values, self.settings.gamma, self.settings.lam)
            for score, values in zip(rewards, before, strict=True)
        ]
        everything = np.concatenate(raw)
        mean, scale = everything.mean(), everything.std() + STD_FLOOR
        advantages = iter([((np.asarray(part) - mean) / scale).tolist() for part in raw])
        judged = iter(
            Values(values, [a + v for a, v in zip(part, values, strict=True)])
            for part, values in zip(raw, before, strict=True)
        )
        return [[next(advantages) for _ in group] for group in rollouts], [
            [next(judged) for _ in group] for group in rollouts
        ]

    def learn(self, rows: Sequence[Row], micro_batches: MicroBatches) -> tuple[float, Update]:
        """One update on the mean over tokens of the squared error, clipped; returns its loss before the update.

        1/2 max((V - R)^2, (clip(V, V_before - clip, V_before + clip) - R)^2)
        """
        rows = [replace(row, advantage=1.0, weight=1.0) for row in rows if row.values is not None]
        tokens = sum(row.response_length for row in rows)
        limit = float("inf") if self.settings.clip is None else self.settings.clip
        total = 0.0
        self.model.train()
        for batch in micro_batches(rows):
            values = self.model(batch)
            judged = [row.values for row in batch.rows if row.values is not None]
            returns = values.new_tensor([value for part in judged for value in part.returns])
            before = values.new_tensor([value for part in judged for value in part.before])
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
    def _values(self, rows: Sequence[Row], micro_batches: MicroBatches) -> list[list[float]]:
        """Of every row, in their order."""
        self.model.eval()
        found: dict[int, list[float]] = {}
        for batch in micro_batches(rows):
            parts = self.model(batch).split([row.response_length for row in batch.rows])
            found |= {id(row): part.tolist() for row, part in zip(batch.rows, parts, strict=True)}
        return [found[id(row)] for row in rows]
