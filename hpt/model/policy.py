"""The policy: a causal language model whose head is not called; `upge` computes the loss from its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import upge
from transformers import PreTrainedModel

from hpt.config.schema import Config, make_objective
from hpt.method.rows import RL, MicroBatch
from hpt.support.errors import HptError


class PolicyModule(torch.nn.Module):
    """The model with a fused head over its own head's weight: token ids in, losses or log-probabilities out.

    This is what an engine wraps: whatever it does to modules (ZeRO-3 gathers their weights) happens in one forward.
    """

    def __init__(self, model: PreTrainedModel, backend: str) -> None:
        super().__init__()
        self.model = model
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.head = upge.FusedLMHead(model.get_output_embeddings(), softcap=softcap, backend=backend)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
        objectives: Sequence[upge.Objective] | None = None,
        **options: Any,
    ) -> upge.PolicyLossOutput | upge.LogprobsOutput:
        """input_ids, position_ids (B, L); positions (N,): flat places in (B, L) whose states predict targets (N,).

        `upge.fused_policy_loss` with `objectives`, `upge.linear_logprobs` without; `options` are theirs. No cache is
        used: in train mode it would mix packed rows.
        """
        decoder = self.model.get_decoder()
        states = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return self.head(states.flatten(0, 1)[positions], targets, objectives, **options)


class Policy:
    """Loss, log-probabilities and entropies of micro-batches under `model`, with the objectives of a recipe.

    Rows of rollouts are scored at the temperature they were sampled at, demonstrations at 1. `module` is what runs; an
    engine that wraps modules puts its wrapper there.
    """

    def __init__(self, model: PreTrainedModel, config: Config) -> None:
        self.model = model
        self.device = model.device
        self.module: Any = PolicyModule(model, config.loss.backend)
        self.temperature = config.rollout.temperature
        self.entropy_coef = config.loss.entropy_coef
        self.kl_coef = config.loss.kl_coef
        rl = make_objective(config.rl.objective, config.rl.options, field="rl")
        sft = make_objective(config.sft.objective, config.sft.options, field="sft")
        off_policy = make_objective(config.off_policy.objective, config.off_policy.options, field="off_policy")
        # One update a step is on-policy: r = 1, nothing is clipped, and every objective over pi_old has REINFORCE's
        # coefficient -w A. So old log-probabilities are neither computed nor read.
        self.needs_old_logprobs = config.batch.updates > 1 and rl.needs_old_logprobs
        self.objectives = [
            rl if self.needs_old_logprobs or not rl.needs_old_logprobs else upge.REINFORCE(),
            replace(sft, advantage="given"),  # 1, but for weights that depend on the micro-batch
            off_policy,
        ]
        self._check_head()

    def loss(self, batch: MicroBatch) -> upge.PolicyLossOutput:
        """The micro-batch's part of the loss; parts add up, since the weights hold the global normaliser."""
        return self.module(
            **_inputs(batch),
            objectives=self.objectives,
            advantages=batch.advantages,
            weights=batch.weights,
            objective_index=batch.objective_index,
            old_logprobs=batch.old_logprobs if self.needs_old_logprobs else None,
            ref_logprobs=batch.ref_logprobs if batch.penalised else None,
            sequence_ids=batch.sequence_ids,
            temperature=self._temperatures(batch),
            entropy_coef=self.entropy_coef,
            kl_coef=self.kl_coef if batch.penalised else 0.0,
        )

    def logprobs(self, batch: MicroBatch) -> torch.Tensor:
        """(N,) float32 log-probabilities of the response tokens."""
        return self._token_values(batch).logprobs

    def entropies(self, batch: MicroBatch) -> torch.Tensor:
        """(N,) float32 entropies, in nats, of the distributions that the response tokens were drawn from."""
        entropy = self._token_values(batch).entropy
        assert entropy is not None
        return entropy

    @torch.no_grad()
    def _token_values(self, batch: MicroBatch) -> upge.LogprobsOutput:
        return self.module(**_inputs(batch), temperature=self._temperatures(batch), entropy=True)

    def _temperatures(self, batch: MicroBatch) -> torch.Tensor:
        return torch.where(batch.objective_index == RL, self.temperature, 1.0)

    @torch.no_grad()
    def _check_head(self) -> None:
        """The model's own logits must be what the fused loss computes: scaled heads must not pass silently."""
        self.model.eval()
        places = torch.arange(8, device=self.device)
        ids = places[None] % self.model.config.get_text_config().vocab_size
        logits = self.model(input_ids=ids, use_cache=False).logits[0]
        expected = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids.T).squeeze(-1)
        got = self.module(ids, places[None], places, ids[0]).logprobs
        bound = 1e-3 if logits.dtype == torch.float32 else 0.25  # 16-bit logits of size 32 are rounded to 0.125
        difference = (got - expected).abs().max().item()
        if not difference <= bound:
            raise HptError(
                f"the logits of {type(self.model).__name__} are not hidden @ weight.T (+ bias, soft-cap): "
                f"log-probabilities differ by {difference:.3g}. The fused loss supports linear heads without scaling."
            )


def _inputs(batch: MicroBatch) -> dict[str, torch.Tensor]:
    return {name: getattr(batch, name) for name in ("input_ids", "position_ids", "positions", "targets")}
