"""The policy: a causal language model whose head is not called; `upge` computes the loss from its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import upge
from transformers import PreTrainedModel
from upge.importance import ImportanceRatio

from hpt.config.objectives import make_objective
from hpt.config.schema import Config
from hpt.config.sections.method import LossConfig
from hpt.method.micro_batches import MicroBatch
from hpt.method.rows import Signal
from hpt.support.errors import ConfigError, HptError


class PolicyModule(torch.nn.Module):
    """The model with a fused head over its own head's weight: token ids in, losses or log-probabilities out.

    This is what an optimizer engine wraps, so that all a step computes goes through one forward (ZeRO-3 gathers weights
    there). HptError where the model's head is not one that the fused loss supports.
    """

    def __init__(self, model: PreTrainedModel, backend: str) -> None:
        super().__init__()
        self.model = model
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.head = upge.FusedLMHead(model.get_output_embeddings(), softcap=softcap, backend=backend)
        self._check_head()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        positions: torch.Tensor,
        targets: torch.Tensor,
        objectives: upge.Objective | Sequence[upge.Objective] | None = None,
        **options: Any,
    ) -> upge.PolicyLossOutput | upge.LogprobsOutput:
        """`upge.fused_policy_loss` with `objectives`, `upge.linear_logprobs` without; `options` are theirs.

        input_ids, position_ids: (B, L) int64. positions: (N,) int64, indices into (B * L) of the hidden states that
        predict targets (N,). No cache is used: in train mode it would mix packed rows.
        """
        decoder = self.model.get_decoder()
        states = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        return self.head(states.flatten(0, 1)[positions], targets, objectives, **options)

    @torch.no_grad()
    def _check_head(self) -> None:
        """The model's own logits must be what the fused loss computes; a scaled head, say, is not supported."""
        self.model.eval()
        positions = torch.arange(8, device=self.model.device)
        ids = positions[None] % self.model.config.get_text_config().vocab_size
        logits = self.model(input_ids=ids, use_cache=False).logits[0]
        expected = torch.log_softmax(logits.float(), dim=-1).gather(-1, ids.T).squeeze(-1)
        if not expected.isfinite().all():
            raise HptError(
                f"the logits of {type(self.model).__name__} are not finite: its weights hold NaN or infinite numbers, "
                "or they are too large for its dtype"
            )
        got = self(ids, positions[None], positions, ids[0]).logprobs
        bound = 1e-3 if logits.dtype == torch.float32 else 0.25  # 16-bit logits of size 32 are rounded to 0.125
        difference = (got - expected).abs().max().item()
        if not difference <= bound:
            raise HptError(
                f"the logits of {type(self.model).__name__} are not hidden @ weight.T (+ bias, soft-cap): "
                f"log-probabilities differ by {difference:.3g}. The fused loss supports linear heads without scaling."
            )


class Policy:
    """Loss, log-probabilities and entropies of micro-batches under `model`, with the objectives of a recipe.

    Rollouts are scored at the temperature they were sampled at, demonstrations at 1.
    module: what an optimizer engine has made of the model's `PolicyModule`; None makes one.
    """

    def __init__(self, model: PreTrainedModel, config: Config, module: torch.nn.Module | None = None) -> None:
        self.model = model
        self.device = model.device
        self.module: Any = PolicyModule(model, config.loss.backend) if module is None else module
        self.temperature = config.rollout.temperature
        self.entropy_coef = config.loss.entropy_coef
        self.kl_coef = config.loss.kl_coef
        self.importance = importance_of(config.loss)
        rl = make_objective("rl", config.rl.objective, config.rl.options)
        sft = make_objective("sft", config.sft.objective, config.sft.options)
        off_policy = make_objective("off_policy", config.off_policy.objective, config.off_policy.options)
        user_functions = [objective.function is not None for objective in (rl, sft, off_policy)]
        # A user's function may read them. A preset over pi_old needs them only with several updates per step: the first
        # is on-policy, with r = 1, and every such preset then has REINFORCE's coefficient -w A.
        self.needs_old_logprobs = any(user_functions) or (config.batch.updates > 1 and rl.reads_old_logprobs)
        if rl.reads_old_logprobs and not self.needs_old_logprobs:
            rl = upge.REINFORCE()
        # The advantage of SFT rows is 1, except that `aggregation: official` puts its normalisers there.
        self.objectives = [rl, replace(sft, advantage="given"), off_policy]  # in the order of Signal

    def loss(self, batch: MicroBatch) -> upge.PolicyLossOutput:
        """The micro-batch's share of the loss; shares add up, since the weights hold the global normaliser.

        HptError where a function of the user's returns no loss.
        """
        try:
            return self._loss(batch)
        except (TypeError, ValueError) as error:
            if str(error).startswith("objective "):
                raise HptError(str(error)) from error
            raise

    def _loss(self, batch: MicroBatch) -> upge.PolicyLossOutput:
        signals = {row.signal for row in batch.rows}
        alike = len(signals) == 1  # then no token's objective has to be looked up
        return self.module(
            **_inputs(batch),
            objectives=self.objectives[signals.pop()] if alike else self.objectives,
            advantages=batch.advantages,
            weights=batch.weights,
            objective_index=None if alike else batch.objective_index,
            old_logprobs=batch.old_logprobs if self.needs_old_logprobs or self.importance else None,
            ref_logprobs=batch.ref_logprobs if batch.penalised else None,
            sequence_ids=batch.sequence_ids,
            temperature=self._temperatures(batch),
            entropy_coef=self.entropy_coef * batch.entropy_bonus if self.entropy_coef else 0.0,
            kl_coef=self.kl_coef if batch.penalised else 0.0,
            **self._importance_options(batch),
        )

    def _importance_options(self, batch: MicroBatch) -> dict[str, Any]:
        """What makes the loss multiply the policy term of rollouts, and nothing else, by `importance`."""
        if self.importance is None:
            return {}
        not_sampled = batch.rollout_logprobs.isnan()  # demonstrations: their ratio is to be 1
        return {
            "rollout_logprobs": batch.old_logprobs.where(not_sampled, batch.rollout_logprobs),
            "tis": self.importance.level,
            "tis_mode": self.importance.mode,
            "tis_clip": self.importance.high,
        }

    def logprobs(self, batch: MicroBatch) -> torch.Tensor:
        """(N,) float32 log-probabilities of the response tokens."""
        return self._token_values(batch).logprobs

    def entropies(self, batch: MicroBatch) -> torch.Tensor:
        """(N,) float32 entropies in nats of the distributions at the response tokens."""
        entropy = self._token_values(batch).entropy
        assert entropy is not None
        return entropy

    @torch.no_grad()
    def _token_values(self, batch: MicroBatch) -> upge.LogprobsOutput:
        return self.module(**_inputs(batch), temperature=self._temperatures(batch), entropy=True)

    def _temperatures(self, batch: MicroBatch) -> float | torch.Tensor:
        if self.temperature == 1:
            return 1.0  # the loss divides no logits by this number, but does by a tensor
        return torch.where(batch.objective_index == Signal.RL, self.temperature, 1.0)


def importance_of(settings: LossConfig) -> ImportanceRatio | None:
    """The truncated importance ratio pi_old / pi_engine that `loss.tis` asks for.

    Rollouts are sampled from the engine's pi, but trained under the trainer's: even with the same weights the two
    differ by rounding and by kernels. pi_old is the trainer's policy whose weights the engine had.
    """
    if settings.tis == "none":
        return None
    return ImportanceRatio(settings.tis, settings.tis_mode, settings.tis_clip)


def check_backend(backend: str, device: torch.device) -> None:
    """ConfigError where the loss cannot be computed by `backend` on `device`."""
    head = torch.zeros(1, 2, device=device)
    try:
        upge.linear_logprobs(head, head, torch.zeros(1, dtype=torch.int64, device=device), backend=backend)
    except ValueError as error:
        raise ConfigError(f"loss.backend = {backend!r} on {device}: {error}") from None


def _inputs(batch: MicroBatch) -> dict[str, torch.Tensor]:
    return {name: getattr(batch, name) for name in ("input_ids", "position_ids", "positions", "targets")}
