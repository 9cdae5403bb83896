"""upge's log-probabilities in place of TRL's.

In TRL, `model(..., labels=..., fused_lm_head=True)` ends in one autograd function, which takes hidden states and the
head's weight and gives log-probabilities, entropies and a few statistics. The trainers' formulas begin there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from trl.trainer import utils

from upge.api import linear_logprobs

Scores = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Of N tokens: log-probabilities, entropies, log sum p^2, mean logits, and whether the target is the likeliest."""


@contextlib.contextmanager
def use_logprobs() -> Iterator[None]:
    """In this context, every trainer of TRL computes its log-probabilities with `upge.linear_logprobs`.

        with upge.integrations.trl.use_logprobs():
            trainer.train()

    It holds for the trainers that call the model with `fused_lm_head=True` (GRPO, RLOO, SFT, DPO, KTO, asynchronous
    GRPO), for all their loss types and options. Logits are summed in float32 and never rounded. A training step
    costs 8 N V D FLOPs, as with TRL's own function; `GRPOTrainer` and `SFTTrainer` of this package cost 6.

    It replaces a name in `trl.trainer.utils`, so it holds for the whole process: trainers in other threads are
    affected too, and two threads must not enter or leave it at the same time. Contexts may be nested.
    """
    with scored_by(Logprobs):
        yield


@contextlib.contextmanager
def scored_by(function: Any) -> Iterator[None]:
    """In this context, TRL's forward calls `function.apply` where it would call its autograd function's."""
    module: Any = utils
    previous = module._ChunkedLogProbFunction
    module._ChunkedLogProbFunction = function
    try:
        yield
    finally:
        module._ChunkedLogProbFunction = previous


class Logprobs:
    """Stands in for TRL's autograd function."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1"),
    ) -> Scores:
        """hidden (N, D), weight (V, D), targets (N,). What `outputs` does not name is None. chunk_size is not used."""
        head: dict[str, Any] = {"bias": bias, "softcap": softcap, "logit_scale": logit_scale}
        out = linear_logprobs(
            hidden,
            weight,
            targets,
            temperature=temperature,
            entropy="entropy" in outputs,
            top1="is_top1" in outputs,
            lse="log_sum_sq_probs" in outputs,
            **head,
        )
        log_sum_squares = mean_logits = None
        with torch.no_grad():
            if out.lse is not None:
                # log sum p^2 = lse(2 z) - 2 lse(z), and 2 z are the logits at half the temperature.
                doubled = linear_logprobs(hidden, weight, targets, temperature=temperature / 2, lse=True, **head).lse
                assert doubled is not None
                log_sum_squares = doubled - 2 * out.lse
            if "mean_logits" in outputs:
                mean_logits = mean_of_logits(hidden, weight, bias, temperature, softcap, logit_scale)
        return out.logprobs, out.entropy, log_sum_squares, mean_logits, out.top1


def mean_of_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    logit_scale: float,
    tile: int = 4096,
) -> Tensor:
    """(N,) float32: the mean over the vocabulary of each token's logits. Without a soft-cap no logit is needed."""
    if softcap is None:
        total = torch.mv(hidden.float(), weight.sum(0, dtype=torch.float32))
        if bias is not None:
            total = total + bias.sum(dtype=torch.float32)
        return total * logit_scale / (temperature * weight.shape[0])
    total = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
    for rows in torch.arange(hidden.shape[0], device=hidden.device).split(tile):
        for columns in torch.arange(weight.shape[0], device=hidden.device).split(tile):
            logits = torch.nn.functional.linear(
                hidden[rows].float(), weight[columns].float(), None if bias is None else bias[columns].float()
            )
            total[rows] += softcap * torch.tanh(logits * (logit_scale / softcap)).sum(1)
    return total / (temperature * weight.shape[0])
