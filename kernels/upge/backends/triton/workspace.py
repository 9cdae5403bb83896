"""The host code of the Triton kernels: what is launched for one chunk of tokens, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ...inputs import HeadInputs, NeededGradients, TokenInputs
from ...token_loss import Coefficients, LossFormula, TokenLosses
from .. import plan as plans
from .. import tuned
from ..workspace import Statistics, WeightSum, Workspace
from . import launch
from .kernels.bias import bias_kernel
from .kernels.coefficient import coefficient_kernel
from .kernels.gather import gather_kernel
from .kernels.logit_gradient import logit_gradient_kernel
from .kernels.reanchor import reanchor_kernel
from .kernels.row_factor import row_factor_kernel
from .kernels.rows import rows_kernel
from .kernels.scaled_hidden import scaled_hidden_kernel
from .objective_table import can_fuse, objective_table
from .weight_sum import ChunkSum

VECTOR_BLOCK = 256
BLOCK = {"ROWS": plans.ROWS, "BLOCK": plans.BLOCK}
SUM_BLOCK = {"ROWS": plans.SUM_ROWS, "BLOCK": plans.SUM_TILES}


@dataclass(frozen=True)
class Kept:
    """What a chunk's backward needs in addition to E.

    hidden (M, D), and per row (M,): the target, 1 / T, the cap's slope at the target, exp(z_y - a), and the sum of
    exp(z_j - a) over the other entries.
    """

    hidden: Tensor
    targets: Tensor
    inverse_temperature: Tensor
    target_slope: Tensor
    share: Tensor
    others: Tensor


class TritonWorkspace(Workspace):
    """Holds E = exp(z - a) of one chunk, whose n tokens are padded to M rows."""

    def __init__(self, head: HeadInputs, needs: NeededGradients):
        weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
        vocabulary, width = weight.shape
        self.plan = _plan(head, weight, needs)
        # With a sharded vocabulary every rank has the same chunks, since collectives combine them.
        largest = vocabulary if head.shard is None else head.shard.largest
        super().__init__(head, needs, plans.chunk_rows(self.plan, largest, width, needs.weight))
        self.hidden = head.hidden if head.hidden.stride(1) == 1 else head.hidden.contiguous()
        self.targets = head.targets.contiguous()
        self.temperature = head.temperature.contiguous() if isinstance(head.temperature, Tensor) else head.temperature
        self.launch_head = launch.Head(weight, None if head.bias is None else head.bias.contiguous(), head.softcap)
        self.exps: tuple[Tensor, ...] = ()
        self.kept: Kept | None = None

    def weight_sum(self) -> WeightSum:
        return ChunkSum(self.head.weight)

    def chunks(self, rows: Tensor) -> Sequence[Tensor]:
        """In pieces of about the same size."""
        if not rows.numel():
            return ()
        size = plans.balanced(rows.numel(), self.chunk_rows, self.plan.granule)
        return list(rows.split(size))

    def forward(self, rows: Tensor, keep: bool) -> Statistics:
        padded = triton.cdiv(rows.numel(), self.plan.granule) * self.plan.granule
        if keep and (not self.exps or len(self.exps[0]) < padded):
            shape = (self.plan.per_entry, padded, self.plan.exps_stride(self.head.vocabulary_size))
            self.exps = ()  # free the smaller one first
            self.exps = torch.empty(shape, dtype=self.plan.exps_dtype, device=rows.device).unbind()
        buffers = self._gather(rows, padded, tuple(x[:padded] for x in self.exps) if keep else ())
        launch.logits(self.plan, self.launch_head, buffers)
        flagged, top1 = self._reanchor(buffers)
        launch.redo(self.plan, self.launch_head, buffers, flagged)
        return self._statistics(buffers, top1, rows.numel())

    def _gather(self, rows: Tensor, padded: int, exps: tuple[Tensor, ...]) -> launch.LogitsBuffers:
        """The chunk's inputs, and the anchors: about the targets' raw logits."""
        head, weight = self.head, self.launch_head.weight
        width = weight.shape[1]
        hidden = torch.empty(padded, width, dtype=self.plan.dtype, device=rows.device)
        targets = torch.empty(padded, dtype=torch.int32, device=rows.device)
        inverse_temperature, anchor, target_logit, target_slope = (_vector(hidden) for _ in range(4))
        several = isinstance(self.temperature, Tensor)
        shape = (self.plan.tiles(head.vocabulary_size), padded)
        sums, moments, tops = (torch.empty(shape, dtype=torch.float32, device=rows.device) for _ in range(3))
        gather_kernel[(padded // plans.ROWS,)](
            rows, self.hidden, weight, self.launch_head.bias_or_unused, self.targets,
            self.temperature if several else anchor, hidden, targets, inverse_temperature, anchor,
            rows.numel(), head.vocabulary_size, width, self.hidden.stride(0), weight.stride(0),
            0 if head.shard is None else head.shard.start, 1.0 if several else float(self.temperature),
            *self.launch_head.softcap_arguments, HAS_TEMPERATURES=several, **self.launch_head.options, **BLOCK,
        )  # fmt: skip
        return launch.LogitsBuffers(
            hidden, targets, inverse_temperature, anchor, target_logit, target_slope, sums, moments, tops, exps
        )

    def _reanchor(self, buffers: launch.LogitsBuffers) -> tuple[Tensor, Tensor]:
        """Give rows with a bad anchor another one. Returns which, int8, and top1, bool; both (M,)."""
        tiles, padded = buffers.tops.shape
        flagged = torch.empty(padded, dtype=torch.int8, device=buffers.tops.device)
        top1 = torch.empty(padded, dtype=torch.bool, device=buffers.tops.device)
        reanchor_kernel[(padded // plans.SUM_ROWS,)](
            buffers.tops, buffers.target_logit, buffers.inverse_temperature, buffers.anchor,
            flagged, top1.view(torch.int8), padded, tiles, self.plan.limit, **SUM_BLOCK,
        )  # fmt: skip
        return flagged, top1

    def _statistics(self, buffers: launch.LogitsBuffers, top1: Tensor, n: int) -> Statistics:
        tiles, padded = buffers.sums.shape
        logprobs, entropy, lse, scaled_anchor, log_total, share, others = (_vector(buffers.hidden) for _ in range(7))
        rows_kernel[(padded // plans.SUM_ROWS,)](
            buffers.sums, buffers.moments, buffers.target_logit, buffers.anchor, buffers.inverse_temperature,
            logprobs, entropy, lse, scaled_anchor, log_total, share, others, padded, tiles, **SUM_BLOCK,
        )  # fmt: skip
        self.kept = None
        if buffers.exps:
            inputs = buffers.hidden, buffers.targets, buffers.inverse_temperature
            self.kept = Kept(*inputs, buffers.target_slope, share, others)
        return Statistics(logprobs, entropy, lse, scaled_anchor, log_total, top1).at(slice(n))

    def losses(self, formula: LossFormula, tokens: TokenInputs, rows: Tensor, statistics: Statistics) -> TokenLosses:
        if not can_fuse(formula, tokens):
            return super().losses(formula, tokens, rows, statistics)
        n = rows.numel()
        loss, coefficient, ratio = (_vector(rows) for _ in range(3))
        entropy_slope = None if tokens.entropy_coef is None else _vector(rows)
        stable = rows.new_empty(n, dtype=torch.bool)
        coefficient_kernel[(triton.cdiv(n, VECTOR_BLOCK),)](
            rows,
            statistics.logprobs,
            statistics.entropy,
            objective_table(formula.objectives, rows.device),
            tokens.weights,
            tokens.importance,
            tokens.objective_index,
            tokens.advantages,
            tokens.old_logprobs,
            tokens.ref_logprobs,
            tokens.entropy_coef,
            tokens.kl_coef,
            loss,
            coefficient,
            entropy_slope,
            ratio,
            stable.view(torch.int8),
            n,
            float(formula.max_log_ratio),
            HAS_IMPORTANCE=tokens.importance is not None,
            HAS_INDEX=tokens.objective_index is not None and len(formula.objectives) > 1,
            HAS_ADVANTAGES=tokens.advantages is not None,
            HAS_OLD=tokens.old_logprobs is not None,
            HAS_ENTROPY=tokens.entropy_coef is not None,
            HAS_KL=tokens.kl_coef is not None,
            BLOCK=VECTOR_BLOCK,
        )
        return TokenLosses(loss, Coefficients(coefficient, entropy_slope), ratio, stable)

    def backward(self, rows: Tensor, statistics: Statistics, coefficients: Coefficients) -> None:
        assert self.kept is not None
        kept, sums, n = self.kept, self.gradients, rows.numel()
        padded, width = kept.hidden.shape
        factor = self._logit_gradient(kept, statistics, coefficients)
        exps = self.exps[0][:padded]
        if sums.hidden is not None:
            launch.scatter(self._hidden_product(exps), factor, rows, sums.hidden)
        if sums.weight is not None:
            assert isinstance(sums.weight, ChunkSum)
            scaled = torch.empty(padded, width, dtype=exps.dtype, device=exps.device)
            scaled_hidden_kernel[(padded // plans.ROWS, triton.cdiv(width, plans.BLOCK))](
                kept.hidden, factor, scaled, n, width, **BLOCK
            )
            launch.add_weight_product(self.plan, exps, scaled, sums.weight)
        if sums.bias is not None:
            vocabulary = self.head.vocabulary_size
            bias_kernel[(triton.cdiv(vocabulary, 128),)](
                exps, factor, sums.bias, n, vocabulary, exps.stride(0), BM=64, BN=128
            )

    def _hidden_product(self, exps: Tensor) -> Tensor:
        """E W in parts, (splits, M, D) fp32."""
        return launch.hidden_product(self.plan, exps, self.launch_head.weight)

    def _logit_gradient(self, kept: Kept, statistics: Statistics, coefficients: Coefficients) -> Tensor:
        """Turn E into d loss / d (h W^T + b), but for a factor of each row, which is returned, (n,)."""
        exps, (g, q, k) = self.exps, (coefficients.g, coefficients.q, coefficients.k)
        has_softcap, n = self.head.softcap is not None, g.numel()
        options = {"HAS_SOFTCAP": has_softcap, "HAS_K": k is not None}
        if q is None:
            factor = _vector(g)
            row_factor_kernel[(triton.cdiv(n, VECTOR_BLOCK),)](
                exps[0], kept.targets, kept.target_slope, kept.share, kept.others, kept.inverse_temperature,
                g, k, factor, n, exps[0].stride(0), **options, BLOCK=VECTOR_BLOCK,
            )  # fmt: skip
            return factor
        assert len(exps) == 2 or not has_softcap, "made for calls without an entropy coefficient"
        vocabulary = self.head.vocabulary_size
        logit_gradient_kernel[(triton.cdiv(n, plans.ROWS), triton.cdiv(vocabulary, plans.BLOCK))](
            exps[0], exps[-1], kept.targets, kept.target_slope, statistics.logprobs, statistics.entropy,
            statistics.log_total, kept.share, kept.others, g, q, k, n, vocabulary, exps[0].stride(0),
            **options, **BLOCK,
        )  # fmt: skip
        return kept.inverse_temperature


def _plan(head: HeadInputs, weight: Tensor, needs: NeededGradients) -> plans.Plan:
    device = weight.device
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return plans.plan_for(
        head.hidden.dtype,
        weight.dtype,
        capability,
        weight.shape[1],
        aligned=weight.data_ptr() % 16 == 0 and weight.stride(0) * weight.itemsize % 16 == 0,
        # With a soft-cap, the gradient of entropies needs z - a in addition to E.
        per_entry=2 if head.softcap is not None and needs.entropy else 1,
        tuned=_tuned(head, weight),
    )


def _tuned(head: HeadInputs, weight: Tensor) -> dict[str, plans.Gemm]:
    """The kernels that `upge tune` found to be the fastest, if it did.

    The ranks of a sharded head must have the same chunks, so they use the shipped plan.
    """
    if head.shard is not None or head.hidden.dtype != weight.dtype:
        return {}
    return tuned.read(tuned.key_for(weight.device, weight.dtype, *weight.shape))


def _vector(like: Tensor) -> Tensor:
    """Uninitialised float32, one per row of `like`."""
    return like.new_empty(len(like), dtype=torch.float32)
