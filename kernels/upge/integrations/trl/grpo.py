"""TRL's GRPOTrainer over the fused pass."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import trl
from torch import Tensor

from .fused_pass import takes_fused_pass
from .logprobs import use_logprobs
from .policy_terms import PolicyTerms, needs_trls_formula, policy_terms

logger = logging.getLogger(__name__)


class GRPOTrainer(trl.GRPOTrainer):
    """`trl.GRPOTrainer` with the head's loss and gradients in one fused pass: 6 N V D FLOPs instead of 8.

    Arguments, losses, metrics and checkpoints are TRL's. Loss types: grpo, bnpo, dr_grpo, dapo, cispo, sapo, luspo and
    vespo, with delta, beta, entropy_coef, vLLM's importance sampling correction and several iterations.

    Where an option needs the log-probabilities of all tokens before the loss of one, the trainer says so once, by
    logging.warning, and uses TRL's formula over upge's log-probabilities (`use_logprobs`, 8 N V D):
    top_entropy_quantile < 1, off_policy_mask_threshold, vespo off-policy, and delta <= 1. Sequence-level ratios
    off-policy take two passes, which is as much.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        takes_fused_pass(self.model)
        self._noticed: set[str] = set()

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        with use_logprobs():
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        if not (torch.is_grad_enabled() and self._trains):
            return super()._compute_loss(model, inputs)
        reason = needs_trls_formula(self, inputs)
        if reason is not None:
            self._notice(reason)
            return super()._compute_loss(model, inputs)
        fused = self._policy_terms(inputs).fused_pass()
        value = super()._compute_loss(fused.through(model), inputs)
        return value + (fused.loss - fused.loss.detach())

    def _policy_terms(self, inputs: Mapping[str, Any]) -> PolicyTerms:
        return policy_terms(self, inputs)

    @property
    def _trains(self) -> bool:
        return self.model is not None and self.model.training

    def _notice(self, reason: str) -> None:
        if reason not in self._noticed:
            self._noticed.add(reason)
            logger.warning(
                "%s: %s; so TRL's formula is used over upge's log-probabilities (8 N V D FLOPs instead of 6)",
                type(self).__name__,
                reason,
            )
