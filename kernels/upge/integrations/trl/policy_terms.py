"""TRL's GRPO loss as arguments of `fused_policy_loss`.

What is restated here is `_compute_loss` of TRL 1.16: a token's loss is

    w (surrogate + beta KL) - e H

with w the normaliser of the loss type, and e the entropy bonus with its own normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from upge.objective import Clip, Objective, SoftGate, Unmasked, WeightClip

from .fused_pass import FusedPass

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


@dataclass(frozen=True)
class PolicyTerms:
    """One micro-batch of B completions, padded to C tokens. Weights are positive and broadcast to (B, C)."""

    objectives: tuple[Objective, ...]
    mask: Tensor  # (B, C) bool: tokens that are trained
    advantages: Tensor  # with the importance ratio of vLLM's samples multiplied in: it acts on the surrogate alone
    weights: Tensor  # of the surrogate
    kl_weights: Tensor | float  # of the KL term
    entropy_weights: Tensor | float
    kl: str
    objective_index: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    sequence_ids: Tensor | None = None

    def fused_pass(self) -> FusedPass:
        # fused_policy_loss multiplies its KL and entropy coefficients by the weight.
        return FusedPass(
            self.objectives,
            mask=self.mask,
            advantages=self.advantages,
            weights=self.weights,
            objective_index=self.objective_index,
            old_logprobs=self.old_logprobs,
            ref_logprobs=self.ref_logprobs,
            sequence_ids=self.sequence_ids,
            kl=self.kl,
            kl_coef=self.kl_weights / self.weights if _used(self.kl_weights) else 0.0,
            entropy_coef=self.entropy_weights / self.weights if _used(self.entropy_weights) else 0.0,
        )


def _used(weights: Tensor | float) -> bool:
    return isinstance(weights, Tensor) or weights != 0


def needs_trls_formula(trainer: Any, inputs: Mapping[str, Any]) -> str | None:
    """The option that one fused pass can't express, mostly because a token's coefficient depends on other tokens."""
    if trainer.off_policy_mask_threshold is not None:
        return f"off_policy_mask_threshold={trainer.off_policy_mask_threshold} compares whole sequences"
    if trainer.top_entropy_quantile < 1:
        return f"top_entropy_quantile={trainer.top_entropy_quantile} ranks the entropies of all tokens"
    if trainer.loss_type == "vespo" and "old_per_token_logps" in inputs:
        return "loss_type='vespo' weighs off-policy tokens by the ratio of their sequence"
    if trainer.args.delta is not None and trainer.args.delta <= 1:
        return f"delta={trainer.args.delta} bounds ratios below 1, which no objective of upge does"
    if trainer.loss_type not in (*CLIPPED, "cispo", "sapo", "vespo"):
        return f"loss_type={trainer.loss_type!r} is not known here"
    return None


def policy_terms(trainer: Any, inputs: Mapping[str, Any]) -> PolicyTerms:
    """The terms of a micro-batch for which `needs_trls_formula` is None. trainer: a GRPOTrainer that is training."""
    mask = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask = mask * inputs["tool_mask"]
    advantages = inputs["advantages"]
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)
    if trainer.use_vllm and trainer.vllm_importance_sampling_correction and trainer.loss_type != "vespo":
        advantages = advantages * inputs["importance_sampling_ratio"]
    old_logprobs = inputs.get("old_per_token_logps")
    kl = "k3_ratio" if trainer.args.use_bias_correction_kl else "k3"
    # On-policy a sequence's ratio is 1, as a token's, and the surrogate has the same gradient where its tokens share an
    # advantage: then one pass is enough.
    by_sequence = trainer.importance_sampling_level == "sequence" and (
        old_logprobs is not None or inputs["advantages"].dim() > 1 or (trainer.beta != 0 and kl == "k3_ratio")
    )
    weights = _weights(trainer, inputs, mask)
    return PolicyTerms(
        objectives=(_objective(trainer, "sequence" if by_sequence else "rollout"),),
        mask=mask.bool(),
        advantages=advantages,
        weights=weights,
        kl_weights=trainer.beta * weights if trainer.beta != 0 else 0.0,
        entropy_weights=_entropy_weight(trainer, mask),
        kl=kl,
        old_logprobs=old_logprobs,
        ref_logprobs=inputs["ref_per_token_logps"] if trainer.beta != 0 else None,
        sequence_ids=mask.new_ones(len(mask)).cumsum(0).unsqueeze(1) if by_sequence else None,
    )


def _objective(trainer: Any, reference: Any) -> Objective:
    low, high, delta = min(trainer.epsilon_low, 1.0), trainer.epsilon_high, trainer.args.delta  # no ratio is below 0
    if trainer.loss_type in CLIPPED:
        dual = None
        if delta is not None:
            # min(min(r, delta) A, clip(r) A): the smaller bound acts where A > 0, the larger where A < 0.
            high, dual = min(high, delta - 1), max(1 + high, delta)
        return Objective(Clip(low, high, dual), reference, likelihood="ratio", name=trainer.loss_type)
    if trainer.loss_type == "cispo":
        # TRL's epsilon_high bounds the ratio itself, not its distance from 1.
        return Objective(WeightClip(high, max_ratio=high), reference, name="cispo")
    if trainer.loss_type == "sapo":
        taus = trainer.args.sapo_temperature_pos, trainer.args.sapo_temperature_neg
        return Objective(SoftGate(*taus), reference, likelihood="ratio", name="sapo")
    return Objective(Unmasked(), reference, name=trainer.loss_type)  # vespo, on-policy


def _weights(trainer: Any, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
    """The normaliser of each completion's tokens, (B, 1) or ()."""
    accumulation = trainer.current_gradient_accumulation_steps
    tokens, completions = mask.sum(-1, keepdim=True).clamp(min=1).float(), len(mask)
    if trainer.loss_type in ("grpo", "sapo"):
        return 1 / (tokens * completions * accumulation)
    if trainer.loss_type == "luspo":
        return 1 / (tokens.new_full((), completions) * accumulation)
    if trainer.loss_type == "bnpo":
        return 1 / (mask.sum().clamp(min=1).float() * accumulation)
    if trainer.loss_type == "dr_grpo":
        return 1 / tokens.new_full((), completions * trainer.max_completion_length * accumulation)
    # cispo, dapo and vespo: num_items_in_batch counts the tokens of a generation batch, over all ranks.
    share = accumulation / (trainer.accelerator.num_processes * trainer.args.steps_per_generation)
    return 1 / (inputs["num_items_in_batch"].clamp(min=1).float() * share)


def _entropy_weight(trainer: Any, mask: Tensor) -> Tensor | float:
    """The bonus is coef times the mean entropy of the micro-batch's tokens."""
    if not trainer._entropy_bonus_enabled:
        return 0.0
    coef = trainer.entropy_coef
    if trainer.use_adaptive_entropy and trainer._last_world_entropy > trainer.args.entropy_target:
        return 0.0
    return coef / (mask.sum().clamp(min=1).float() * trainer.current_gradient_accumulation_steps)
