"""TRL's SFTTrainer over the fused pass."""

from __future__ import annotations

import logging
from typing import Any

import torch
import trl
from torch import Tensor

from upge.presets import DFT, SFT

from .fused_pass import FusedPass, takes_fused_pass
from .logprobs import use_logprobs

logger = logging.getLogger(__name__)


class SFTTrainer(trl.SFTTrainer):
    """`trl.SFTTrainer` with the head's loss and gradients in one fused pass: 6 N V D FLOPs instead of 8.

    Arguments, losses (nll, dft), metrics and checkpoints are TRL's. Options whose loss needs the model's logits or is
    not computed by TRL's own formula fall back to `use_logprobs`, with one logging.warning that names the option:
    compute_loss_func, label_smoothing_factor, and DeepSpeed's sequence parallelism.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        takes_fused_pass(self.model)
        self._noticed = False

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        args: Any = self.args
        reason = self._needs_other_loss()
        if reason is not None and not self._noticed:
            self._noticed = True
            logger.warning("%s: %s, so upge gives the log-probabilities alone", type(self).__name__, reason)
        if reason is not None or return_outputs or not torch.is_grad_enabled():
            with use_logprobs():
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        objective = DFT() if args.loss_type == "dft" else SFT()
        fused = FusedPass(objective, weights=self._token_weight(num_items_in_batch))
        value = super().compute_loss(fused.through(model), inputs, num_items_in_batch=num_items_in_batch)
        return value + (fused.loss - fused.loss.detach())

    def _needs_other_loss(self) -> str | None:
        args: Any = self.args
        if self.compute_loss_func is not None:
            return "compute_loss_func reads the logits"
        if self.label_smoother is not None and args.loss_type == "nll":
            return f"label_smoothing_factor={args.label_smoothing_factor} reads the logits"
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and parallelism.sp_enabled:
            return "sequence parallelism reduces the model's own loss"
        return None

    def _token_weight(self, num_items_in_batch: Any) -> Tensor | None:
        """TRL's normaliser: 1 / the tokens of the update over all ranks, whose gradients are then averaged."""
        if num_items_in_batch is None:
            return None  # fused_policy_loss takes the mean over the tokens that count, as TRL does
        ranks = self.accelerator.num_processes // self.get_tp_size() if self.args.average_tokens_across_devices else 1
        return ranks / torch.as_tensor(num_items_in_batch).clamp(min=1).float()
