"""The Triton backend: one visit to the logits, three GEMMs, 6 NVD in all, nothing computed twice.

    anchor         a = z_y                                    a gathered dot product
    logits         E = exp(z - a), sums of E and E (z - a)    GEMM, 2 NVD; again for rows with nll > 40
    rows           l, H
    coefficient    g                                          the objectives of the UPGE
    logit_gradient only with an entropy bonus or a soft-cap
    hidden         dh = scale E W                             GEMM, 2 NVD
    weight         dW += E^T (scale h)                        GEMM, 2 NVD

E of a chunk of tokens is all that is stored of the logits, in bf16 for bf16 inputs. There are no atomics and no locks,
tile shapes do not depend on the number of tokens, and every sum has a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ...coefficient import TokenLoss, TokenStep
from ...inputs import Head, Needs, Tokens
from .. import plan as plans
from ..plan import Plan, Tile, exps_stride, plan_for
from ..workspace import Forward, Sum, Workspace
from .anchor import anchor_kernel
from .bias import bias_kernel
from .coefficient import can_fuse, coefficient_kernel, objective_table
from .hidden import hidden_kernel
from .logit_gradient import logit_gradient_kernel
from .logits import logits_kernel
from .reanchor import reanchor_kernel
from .rows import rows_kernel
from .split import SplitSum
from .weight import weight_kernel


@dataclass(frozen=True)
class Kept:
    """What a chunk's backward needs besides E: its hidden states (n, D), and per row (n,)."""

    hidden: Tensor
    targets: Tensor
    inverse_temperature: Tensor
    total: Tensor
    others: Tensor


class Fused(Workspace):
    """The workspace of the Triton kernels: E of one chunk."""

    def __init__(self, head: Head, needs: Needs):
        device = head.weight.device
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        self.plan: Plan = plan_for(head.weight.dtype, capability, head.weight.shape[1])
        self.tiles = triton.cdiv(head.vocabulary, self.plan.logits.BN)
        self.stride = exps_stride(self.plan, head.vocabulary)
        v, d = head.weight.shape
        super().__init__(head, needs, plans.chunk_rows(self.plan, v, d, needs.weight))
        self.weight = head.weight if head.weight.stride(1) == 1 else head.weight.contiguous()
        self.exps: Tensor | None = None
        self.kept: Kept | None = None

    def weight_sum(self) -> Tensor | Sum:
        weight = self.head.weight
        return super().weight_sum() if weight.dtype == torch.float32 else SplitSum(weight)

    def forward(self, rows: Tensor, keep: bool) -> Forward:
        head, tile, n = self.head, self.plan.logits, rows.numel()
        hidden = head.hidden.index_select(0, rows)
        targets = head.targets.index_select(0, rows).long()
        inverse_temperature = self._inverse_temperature(rows)
        if keep and (self.exps is None or self.exps.shape[0] < n):
            # Zeros, because no kernel writes past the last vocabulary tile.
            self.exps = torch.zeros(n, self.stride, dtype=self.plan.exps, device=rows.device)
        exps = self.exps if self.exps is not None else hidden
        vector = lambda count=1: torch.empty(n, count, dtype=torch.float32, device=rows.device).squeeze(1)
        target_logit, logprobs, entropy, log_total, total, others = (vector() for _ in range(6))
        sums, moments, tops = (vector(self.tiles).view(n, self.tiles) for _ in range(3))
        redo = torch.empty(n, dtype=torch.int8, device=rows.device)
        bias = head.bias if head.bias is not None else self.weight
        softcap = float(head.softcap or 1.0)
        optional = {"HAS_BIAS": head.bias is not None, "HAS_SOFTCAP": head.softcap is not None}

        by_rows, block = (triton.cdiv(n, plans.ROWS),), {"ROWS": plans.ROWS, "BLOCK": plans.BLOCK}
        anchor_kernel[by_rows](
            hidden, self.weight, bias, targets, inverse_temperature, target_logit,
            n, hidden.shape[1], self.weight.stride(0), softcap, **optional, **block,
        )  # fmt: skip
        anchor = target_logit.clone()
        for again in (False, True):
            logits_kernel[(triton.cdiv(n, tile.BM), self.tiles)](
                hidden, self.weight, bias, targets, inverse_temperature, anchor, redo, exps, sums, moments, tops,
                n, head.vocabulary, hidden.shape[1], self.weight.stride(0), self.stride, self.tiles, softcap,
                **optional, KEEP=keep, REDO=again, EVEN_D=hidden.shape[1] % tile.BK == 0, **self._tile(tile),
            )  # fmt: skip
            if not again:
                reanchor_kernel[by_rows](tops, anchor, redo, n, self.tiles, self.plan.limit, **block)
        rows_kernel[by_rows](
            sums, moments, target_logit, anchor, logprobs, entropy, log_total, total, others, n, self.tiles, **block
        )
        self.kept = Kept(hidden, targets, inverse_temperature, total, others) if keep else None
        return Forward(logprobs, entropy, anchor, log_total)

    def losses(self, step: TokenStep, tokens: Tokens, rows: Tensor, forward: Forward) -> TokenLoss:
        if not can_fuse(step.objectives):
            return super().losses(step, tokens, rows, forward)
        n = rows.numel()
        loss, coefficient, ratio = (torch.empty(n, dtype=torch.float32, device=rows.device) for _ in range(3))
        stable = torch.empty(n, dtype=torch.int8, device=rows.device)
        given = lambda x: tokens.weights if x is None else x
        coefficient_kernel[(triton.cdiv(n, 256),)](
            rows, forward.logprobs, forward.entropy, objective_table(step.objectives, rows.device), tokens.weights,
            given(tokens.objective_index), given(tokens.advantages), given(tokens.old_logprobs),
            given(tokens.ref_logprobs), loss, coefficient, ratio, stable, n, step.entropy_coef, step.kl_coef,
            HAS_INDEX=tokens.objective_index is not None and len(step.objectives) > 1,
            HAS_ADVANTAGES=tokens.advantages is not None, HAS_OLD=tokens.old_logprobs is not None,
            HAS_KL=step.kl_coef != 0, BLOCK=256,
        )  # fmt: skip
        slope = -step.entropy_coef * tokens.weights.index_select(0, rows) if step.entropy_coef else None
        return TokenLoss(loss, coefficient, ratio, stable.bool(), slope)

    def backward(self, rows: Tensor, forward: Forward, g: Tensor, q: Tensor | None) -> None:
        assert self.kept is not None
        assert self.exps is not None
        head, kept, sums, n = self.head, self.kept, self.gradients, rows.numel()
        exps = self.exps[:n]
        if q is None and head.softcap is None:
            scale = -g / kept.total * kept.inverse_temperature
            exps.scatter_(1, kept.targets[:, None], -kept.others[:, None].to(exps.dtype))
        else:
            scale = kept.inverse_temperature
            logit_gradient_kernel[(triton.cdiv(n, plans.ROWS), triton.cdiv(head.vocabulary, plans.BLOCK))](
                exps, kept.targets, forward.logprobs, forward.entropy, forward.anchor, forward.log_total, kept.total,
                kept.others, kept.inverse_temperature, g, torch.zeros_like(g) if q is None else q, n, head.vocabulary,
                self.stride, float(head.softcap or 1.0), HAS_SOFTCAP=head.softcap is not None,
                ROWS=plans.ROWS, BLOCK=plans.BLOCK,
            )  # fmt: skip
        if sums.hidden is not None:
            sums.hidden.index_copy_(0, rows, self._hidden_gradient(exps, scale).to(sums.hidden.dtype))
        if sums.weight is not None:
            self._add_weight_gradient(exps, (kept.hidden * scale[:, None]).to(exps.dtype))
        if sums.bias is not None:
            bias_kernel[(triton.cdiv(head.vocabulary, 128),)](
                exps, scale, sums.bias, n, head.vocabulary, self.stride, BM=64, BN=128
            )

    def _hidden_gradient(self, exps: Tensor, scale: Tensor) -> Tensor:
        tile, parts, n, (v, d) = self.plan.hidden, plans.HIDDEN_PARTS, len(exps), self.weight.shape
        part_length = triton.cdiv(triton.cdiv(v, parts), tile.BK) * tile.BK
        partial = torch.empty(parts, n, d, dtype=torch.float32, device=exps.device)
        hidden_kernel[(triton.cdiv(n, tile.BM), triton.cdiv(d, tile.BN), parts)](
            exps, self.weight, scale, partial, n, v, d, self.weight.stride(0), self.stride, part_length,
            **self._tile(tile),
        )  # fmt: skip
        return partial.sum(0)

    def _add_weight_gradient(self, exps: Tensor, scaled: Tensor) -> None:
        tile, total, (v, d) = self.plan.weight, self.gradients.weight, self.weight.shape
        high, low = (total.high, total.low) if isinstance(total, SplitSum) else (total, total)
        weight_kernel[(triton.cdiv(d, tile.BN), triton.cdiv(v, tile.BM))](
            exps, scaled, high, low, len(exps), v, d, self.stride, HAS_LOW=high is not low, **self._tile(tile)
        )

    def _tile(self, tile: Tile) -> dict:
        return {"PRECISION": self.plan.precision, **vars(tile)}

    def _inverse_temperature(self, rows: Tensor) -> Tensor:
        t = self.head.temperature
        if isinstance(t, Tensor):
            return 1.0 / t.index_select(0, rows)
        return torch.full((rows.numel(),), 1.0 / t, dtype=torch.float32, device=rows.device)
