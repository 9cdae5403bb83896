"""Other ways to the same loss: each takes a problem and returns its loss, or says why it cannot.

Published packages are called as they are; `full`, `by_sequence` and `checkpointed` are written out here after what
trainers do with PyTorch alone (full logits; verl's log-softmax of one sequence at a time; TRL's chunks, recomputed in
the backward).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._problem import SEQUENCE, Problem


class Unavailable(Exception):
    """Why a peer has no number here."""


def full(problem: Problem) -> Tensor:
    z = F.linear(problem.hidden, problem.weight).float()
    return problem.surrogate(torch.log_softmax(z, -1).gather(1, problem.targets[:, None]).squeeze(1))


def by_sequence(problem: Problem) -> Tensor:
    """fp32 logits: gathered minus logsumexp; others: log-softmax in their own dtype, as verl has it."""
    logits = F.linear(problem.hidden, problem.weight)
    parts = []
    for z, y in zip(logits.split(SEQUENCE), problem.targets[:, None].split(SEQUENCE), strict=True):
        if z.dtype == torch.float32:
            parts.append(z.gather(1, y).squeeze(1) - torch.logsumexp(z, -1))
        else:
            parts.append(torch.log_softmax(z, -1).gather(1, y).squeeze(1).float())
    return problem.surrogate(torch.cat(parts))


def checkpointed(problem: Problem) -> Tensor:
    def logprobs(hidden: Tensor, targets: Tensor) -> Tensor:
        z = F.linear(hidden, problem.weight).float()
        return -F.cross_entropy(z, targets, reduction="none")

    parts = [
        checkpoint(logprobs, h, y, use_reentrant=False)
        for h, y in zip(problem.hidden.split(SEQUENCE), problem.targets.split(SEQUENCE), strict=True)
    ]
    return problem.surrogate(torch.cat(parts))


_compiled = None


def compiled(problem: Problem) -> Tensor:
    global _compiled
    if _compiled is None:
        _compiled = torch.compile(lambda h, w, y: -F.cross_entropy(F.linear(h, w).float(), y, reduction="none"))
    return problem.surrogate(_compiled(problem.hidden, problem.weight, problem.targets))


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

    rows = lambda x: x.view(-1, min(SEQUENCE, len(x)), *x.shape[1:])
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
    """By default it leaves out gradients below the resolution of bf16, so its dh and dW are approximate."""
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
    "pytorch": full,
    "verl-formula": by_sequence,
    "trl-chunks": checkpointed,
    "torch-compile": compiled,
    "liger-kernel": liger,
    "cut-cross-entropy": cut_cross_entropy,
    "quack-kernels": quack,
}
