"""Other implementations of the same loss. Each takes a problem and returns its loss, or raises `Unavailable`.

Published packages are called as they are. `full_logits`, `by_sequence` and `checkpointed` are written here and do what
trainers do with plain PyTorch: full logits, verl's log-softmax of one sequence at a time, and TRL's chunks that are
recomputed in the backward.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .problem import SEQUENCE, Problem


class Unavailable(Exception):
    """Why a peer cannot be measured here."""


def full_logits(problem: Problem) -> Tensor:
    z = F.linear(problem.hidden, problem.weight).float()
    return problem.surrogate(torch.log_softmax(z, -1).gather(1, problem.targets[:, None]).squeeze(1))


def by_sequence(problem: Problem) -> Tensor:
    """verl's formulas: for fp32 logits gather minus logsumexp, for others log-softmax in their own dtype."""
    logits = F.linear(problem.hidden, problem.weight)
    parts = []
    for z, y in zip(logits.split(SEQUENCE), problem.targets[:, None].split(SEQUENCE), strict=True):
        if z.dtype == torch.float32:
            parts.append(z.gather(1, y).squeeze(1) - torch.logsumexp(z, -1))
        else:
            parts.append(torch.log_softmax(z, -1).gather(1, y).squeeze(1).float())
    return problem.surrogate(torch.cat(parts))


def _plain_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")


def checkpointed(problem: Problem) -> Tensor:
    parts = [
        checkpoint(_plain_logprobs, h, problem.weight, y, use_reentrant=False)
        for h, y in zip(problem.hidden.split(SEQUENCE), problem.targets.split(SEQUENCE), strict=True)
    ]
    return problem.surrogate(torch.cat(parts))


@cache
def _compiled_logprobs() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torch.compile(_plain_logprobs)


def compiled(problem: Problem) -> Tensor:
    return problem.surrogate(_compiled_logprobs()(problem.hidden, problem.weight, problem.targets))


def liger(problem: Problem) -> Tensor:
    _need("liger_kernel", "liger-kernel")
    if problem.case == "hpt":
        raise Unavailable("has no loss for SFT and GRPO rows in one call")
    if problem.case == "sft":
        if problem.hidden.device.type != "cuda":
            raise Unavailable("its SFT loss is a Triton kernel and needs a GPU")
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        return LigerFusedLinearCrossEntropyFunction.apply(problem.hidden, problem.weight, problem.targets)[0]
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    def rows(x: Tensor) -> Tensor:
        return x.view(-1, min(SEQUENCE, len(x)), *x.shape[1:])

    loss = LigerFusedLinearGRPOLoss(beta=0.0, loss_type="bnpo", use_ref_model=False, compiled=False)
    return loss(
        rows(problem.hidden),
        problem.weight,
        rows(problem.targets),
        torch.ones_like(rows(problem.targets)),
        rows(problem.advantages)[:, 0],
        old_per_token_logps=rows(problem.old_logprobs),
    )[0]


def cut_cross_entropy(problem: Problem) -> Tensor:
    """By default it drops gradients below the resolution of bf16, so its dh and dW are approximate."""
    _need("cut_cross_entropy", "cut-cross-entropy")
    _need_gpu(problem)
    from cut_cross_entropy import linear_cross_entropy

    nll = linear_cross_entropy(problem.hidden, problem.weight, problem.targets, reduction="none")
    return problem.surrogate(-nll.float())


def quack(problem: Problem) -> Tensor:
    _need("quack", "quack-kernels")
    _need_gpu(problem)
    if problem.case != "sft":
        raise Unavailable("computes cross-entropy only")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(problem.hidden, problem.weight, problem.targets)


def _need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise Unavailable(f"{package} is not installed")


def _need_gpu(problem: Problem) -> None:
    if problem.hidden.device.type != "cuda":
        raise Unavailable("needs a GPU")


PEERS: dict[str, Callable[[Problem], Tensor]] = {
    "pytorch": full_logits,
    "verl-formula": by_sequence,
    "trl-chunks": checkpointed,
    "torch-compile": compiled,
    "liger-kernel": liger,
    "cut-cross-entropy": cut_cross_entropy,
    "quack-kernels": quack,
}
