"""The host code of the Triton kernels: what is launched for one chunk of tokens, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ...inputs import HeadInputs, NeededGradients, TokenInputs
from ...token_loss import Coefficients, LossFormula, TokenLosses
from .. import tiling as tilings
from ..workspace import Statistics, WeightSum, Workspace
from .kernels.anchor import anchor_kernel
from .kernels.bias import bias_kernel
from .kernels.coefficient import coefficient_kernel
from .kernels.hidden import hidden_kernel
from .kernels.logit_gradient import logit_gradient_kernel
from .kernels.logits import logits_kernel
from .kernels.reanchor import reanchor_kernel
from .kernels.row_factor import row_factor_kernel
from .kernels.rows import rows_kernel
from .kernels.weight import weight_kernel
from .objective_table import can_fuse, objective_table
from .weight_sum import SplitSum

VECTOR_BLOCK = 256
BLOCK = {"ROWS": tilings.ROWS, "BLOCK": tilings.BLOCK}


@dataclass(frozen=True)
class Chunk:
    """The inputs of a chunk of tokens: hidden states (n, D), and per token (n,)."""

    hidden: Tensor
    targets: Tensor
    inverse_temperature: Tensor


@dataclass(frozen=True)
class Partials:
    """What the logits kernel finds: the target's raw logit and the cap's slope there, each (n,), and sums and maxima of
    vocabulary tiles, (n, tiles).
    """

    target_logit: Tensor
    target_slope: Tensor
    sums: Tensor
    moments: Tensor
    tops: Tensor


@dataclass(frozen=True)
class Kept:
    """What a chunk's backward needs in addition to E.

    Per token (n,): the cap's slope at the target, exp(z_y - a), and the sum of exp(z_j - a) over the other entries.
    """

    chunk: Chunk
    target_slope: Tensor
    share: Tensor
    others: Tensor


class TritonWorkspace(Workspace):
    """Holds E = exp(z - a) of one chunk."""

    def __init__(self, head: HeadInputs, needs: NeededGradients):
        device = head.weight.device
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        vocabulary, width = head.weight.shape
        # With a soft-cap, the gradient of entropies needs z - a in addition to E.
        per_entry = 2 if head.softcap is not None and needs.entropy else 1
        self.tiling = tilings.tiling_for(head.hidden.dtype, capability, width, head.weight.dtype, per_entry)
        self.tiles = triton.cdiv(vocabulary, self.tiling.logits.BN)
        self.stride = tilings.exps_stride(self.tiling, vocabulary)
        # With a sharded vocabulary every rank has the same chunks, since collectives combine them.
        largest = vocabulary if head.shard is None else head.shard.largest
        super().__init__(head, needs, tilings.chunk_rows(self.tiling, largest, width, needs.weight))
        self.weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
        self.bias = head.bias if head.bias is not None else self.weight  # unused without HAS_BIAS
        self.softcap = float(head.softcap or 1.0)
        self.options = {"HAS_BIAS": head.bias is not None, "HAS_SOFTCAP": head.softcap is not None}
        self.exps: tuple[Tensor, ...] | None = None
        self.kept: Kept | None = None

    def weight_sum(self) -> Tensor | WeightSum:
        weight = self.head.weight
        return super().weight_sum() if weight.dtype == torch.float32 else SplitSum(weight)

    def forward(self, rows: Tensor, keep: bool) -> Statistics:
        chunk = self._chunk(rows)
        if keep and (self.exps is None or self.exps[0].shape[0] < rows.numel()):
            # Zeros, because no kernel writes past the last vocabulary tile.
            shape = (self.tiling.per_entry, rows.numel(), self.stride)
            self.exps = torch.zeros(shape, dtype=self.tiling.exps, device=rows.device).unbind()
        tiles = (rows.new_empty(rows.numel(), self.tiles, dtype=torch.float32) for _ in range(3))
        partials = Partials(_vector(rows), _vector(rows), *tiles)
        anchor = self._anchor(chunk)
        self._logits(chunk, anchor, partials, keep)
        redo, top1 = self._reanchor(chunk, anchor, partials)
        self._logits(chunk, anchor, partials, keep, redo)
        return self._statistics(chunk, anchor, partials, top1, keep)

    def _chunk(self, rows: Tensor) -> Chunk:
        head, temperature = self.head, self.head.temperature
        if isinstance(temperature, Tensor):
            inverse = 1.0 / temperature.index_select(0, rows)
        else:
            inverse = torch.full((rows.numel(),), 1.0 / temperature, dtype=torch.float32, device=rows.device)
        hidden = head.hidden.index_select(0, rows).to(head.dtype)
        return Chunk(hidden, head.targets.index_select(0, rows).long(), inverse)

    def _anchor(self, chunk: Chunk) -> Tensor:
        """About the target's raw logit, (n,)."""
        n, width = chunk.hidden.shape
        anchor = _vector(chunk.targets)
        anchor_kernel[self._by_rows(n)](
            chunk.hidden, self.weight, self.bias, chunk.targets, anchor,
            n, width, self.weight.stride(0), self.softcap, 1.0 / self.softcap, **self.options, **BLOCK,
        )  # fmt: skip
        return anchor

    def _logits(self, chunk: Chunk, anchor: Tensor, partials: Partials, keep: bool, redo: Tensor | None = None) -> None:
        """Fill `partials` and, if `keep`, E. With redo (n,), only where a row of the tile has to be computed again."""
        tile, (n, width) = self.tiling.logits, chunk.hidden.shape
        exps = (anchor,) if self.exps is None else self.exps  # unused unless kept
        logits_kernel[(triton.cdiv(n, tile.BM), self.tiles)](
            chunk.hidden, self.weight, self.bias, chunk.targets, chunk.inverse_temperature, anchor,
            chunk.targets if redo is None else redo, partials.target_logit, partials.target_slope, exps[0], exps[-1],
            partials.sums, partials.moments, partials.tops,
            n, self.head.vocabulary_size, width, self.weight.stride(0), self.stride, self.tiles,
            self.softcap, 1.0 / self.softcap, **self.options,
            KEEP=keep, KEEP_DISTANCES=keep and len(exps) > 1, REDO=redo is not None,
            EVEN_D=width % tile.BK == 0, **self._tile_options(tile),
        )  # fmt: skip

    def _reanchor(self, chunk: Chunk, anchor: Tensor, partials: Partials) -> tuple[Tensor, Tensor]:
        """Give rows with a bad anchor another one. Returns which, int8, and top1, bool; both (n,)."""
        n = anchor.numel()
        redo, top1 = (torch.empty(n, dtype=dtype, device=anchor.device) for dtype in (torch.int8, torch.bool))
        reanchor_kernel[self._by_rows(n)](
            partials.tops, partials.target_logit, chunk.inverse_temperature, anchor, redo, top1.view(torch.int8),
            n, partials.tops.shape[1], self.tiling.limit, **BLOCK,
        )  # fmt: skip
        return redo, top1

    def _statistics(self, chunk: Chunk, anchor: Tensor, partials: Partials, top1: Tensor, keep: bool) -> Statistics:
        n = anchor.numel()
        logprobs, entropy, scaled_anchor, log_total, share, others = (_vector(anchor) for _ in range(6))
        rows_kernel[self._by_rows(n)](
            partials.sums, partials.moments, partials.target_logit, anchor, chunk.inverse_temperature,
            logprobs, entropy, scaled_anchor, log_total, share, others, n, partials.sums.shape[1], **BLOCK,
        )  # fmt: skip
        self.kept = Kept(chunk, partials.target_slope, share, others) if keep else None
        return Statistics(logprobs, entropy, scaled_anchor + log_total, scaled_anchor, log_total, top1)

    def losses(self, formula: LossFormula, tokens: TokenInputs, rows: Tensor, statistics: Statistics) -> TokenLosses:
        if not can_fuse(formula, tokens):
            return super().losses(formula, tokens, rows, statistics)
        n = rows.numel()
        loss, coefficient, ratio = (_vector(rows) for _ in range(3))
        stable = rows.new_empty(n, dtype=torch.int8)
        unused = tokens.weights  # stands for arguments that the call was not given
        coefficient_kernel[(triton.cdiv(n, VECTOR_BLOCK),)](
            rows,
            statistics.logprobs,
            statistics.entropy,
            objective_table(formula.objectives, rows.device),
            tokens.weights,
            unused if tokens.importance is None else tokens.importance,
            unused if tokens.objective_index is None else tokens.objective_index,
            unused if tokens.advantages is None else tokens.advantages,
            unused if tokens.old_logprobs is None else tokens.old_logprobs,
            unused if tokens.ref_logprobs is None else tokens.ref_logprobs,
            unused if tokens.entropy_coef is None else tokens.entropy_coef,
            unused if tokens.kl_coef is None else tokens.kl_coef,
            loss,
            coefficient,
            ratio,
            stable,
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
        q = None
        if tokens.entropy_coef is not None:
            q = -(tokens.weights * tokens.entropy_coef).index_select(0, rows)
        return TokenLosses(loss, Coefficients(coefficient, q), ratio, stable.bool())

    def backward(self, rows: Tensor, statistics: Statistics, coefficients: Coefficients) -> None:
        assert self.kept is not None
        assert self.exps is not None
        chunk, sums, n = self.kept.chunk, self.gradients, rows.numel()
        factor = self._logit_gradient(self.kept, statistics, coefficients)
        exps = self.exps[0][:n]
        if sums.hidden is not None:
            sums.hidden.index_copy_(0, rows, self._hidden_gradient(exps, factor).to(sums.hidden.dtype))
        if sums.weight is not None:
            self._add_weight_gradient(exps, (chunk.hidden * factor[:, None]).to(exps.dtype), sums.weight)
        if sums.bias is not None:
            bias_kernel[(triton.cdiv(self.head.vocabulary_size, 128),)](
                exps, factor, sums.bias, n, self.head.vocabulary_size, self.stride, BM=64, BN=128
            )

    def _logit_gradient(self, kept: Kept, statistics: Statistics, coefficients: Coefficients) -> Tensor:
        """Turn E into d loss / d (h W^T + b), but for a factor of each row, which is returned, (n,)."""
        assert self.exps is not None
        chunk, exps, (g, q, k) = kept.chunk, self.exps, (coefficients.g, coefficients.q, coefficients.k)
        options = {"HAS_SOFTCAP": self.options["HAS_SOFTCAP"], "HAS_K": k is not None}
        unused, n = g, g.numel()
        if q is None:
            factor = _vector(g)
            row_factor_kernel[(triton.cdiv(n, VECTOR_BLOCK),)](
                exps[0], chunk.targets, kept.target_slope, kept.share, kept.others, chunk.inverse_temperature,
                g, unused if k is None else k, factor, n, self.stride, **options, BLOCK=VECTOR_BLOCK,
            )  # fmt: skip
            return factor
        assert len(exps) == 2 or not self.options["HAS_SOFTCAP"], "made for calls without an entropy coefficient"
        logit_gradient_kernel[(*self._by_rows(n), triton.cdiv(self.head.vocabulary_size, tilings.BLOCK))](
            exps[0], exps[-1], chunk.targets, kept.target_slope, statistics.logprobs, statistics.entropy,
            statistics.log_total, kept.share, kept.others, g, q, unused if k is None else k,
            n, self.head.vocabulary_size, self.stride, **options, **BLOCK,
        )  # fmt: skip
        return chunk.inverse_temperature

    def _hidden_gradient(self, exps: Tensor, scale: Tensor) -> Tensor:
        """dh of the chunk, (n, D) fp32."""
        tile, parts, n = self.tiling.hidden, tilings.HIDDEN_PARTS, len(exps)
        vocabulary, width = self.weight.shape
        part_length = triton.cdiv(triton.cdiv(vocabulary, parts), tile.BK) * tile.BK
        partial = torch.empty(parts, n, width, dtype=torch.float32, device=exps.device)
        hidden_kernel[(triton.cdiv(n, tile.BM), triton.cdiv(width, tile.BN), parts)](
            exps, self.weight, scale, partial, n, vocabulary, width, self.weight.stride(0), self.stride, part_length,
            **self._tile_options(tile),
        )  # fmt: skip
        return partial.sum(0)

    def _add_weight_gradient(self, exps: Tensor, scaled_hidden: Tensor, total: Tensor | WeightSum) -> None:
        tile = self.tiling.weight
        vocabulary, width = self.weight.shape
        has_low = isinstance(total, SplitSum)
        high, low = (total.high, total.low) if isinstance(total, SplitSum) else (total, total)
        weight_kernel[(triton.cdiv(width, tile.BN), triton.cdiv(vocabulary, tile.BM))](
            exps, scaled_hidden, high, low, len(exps), vocabulary, width, self.stride,
            HAS_LOW=has_low, **self._tile_options(tile),
        )  # fmt: skip

    def _tile_options(self, tile: tilings.Tile) -> dict[str, Any]:
        return {"PRECISION": self.tiling.precision, **vars(tile)}

    def _by_rows(self, n: int) -> tuple[int]:
        return (triton.cdiv(n, tilings.ROWS),)


def _vector(like: Tensor) -> Tensor:
    """Uninitialised float32, one per token, as many as `like` has."""
    return like.new_empty(like.numel(), dtype=torch.float32)
