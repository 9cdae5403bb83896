"""One chunk of tokens with random numbers, on which a GEMM of the loss is run alone by each of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends import plan as plans
from ..backends.plan import Gemm, Plan
from ..backends.triton import launch
from ..backends.triton.weight_sum import ChunkSum

SAMPLE = 64  # rows of a result that are compared with float32
ROWS = 1024  # the rows of a chunk are a multiple of this: of the blocks of every kernel


@dataclass(frozen=True)
class Kernel:
    """run starts it once. sample: SAMPLE rows of its result in float32, right after the first run."""

    run: Callable[[], object]
    sample: Callable[[], Tensor]


class Chunk:
    """The inputs of all three GEMMs: hidden states (n, D), weight (V, D), and E (n, V) with entries between 0 and 1."""

    def __init__(self, vocabulary: int, width: int, dtype: torch.dtype, device: str, rows: int | None = None):
        capability = torch.cuda.get_device_capability(device) if device != "cpu" else (0, 0)
        self.plan = plans.plan_for(dtype, dtype, capability, width)
        self.choices = plans.choices(dtype, dtype, capability)
        self.width, self.vocabulary, self.device = width, vocabulary, device
        if rows is None:
            most = plans.chunk_rows(self.plan, vocabulary, width, sums_weight=True)
            rows = max(1, most // ROWS) * ROWS
        self.rows = rows
        generator = torch.Generator(device).manual_seed(0)
        self.hidden = torch.randn(rows, width, device=device, generator=generator).to(dtype)
        weight = torch.randn(vocabulary, width, device=device, generator=generator)
        self.weight = weight.mul_(3 / width**0.5).to(dtype)
        del weight
        # Whole tiles of every kernel, 0 past V.
        stride = max(replace(self.plan, logits=gemm).exps_stride(vocabulary) for gemm in self.choices["logits"])
        self.exps = torch.zeros(rows, stride, dtype=self.plan.exps_dtype, device=device)
        self.exps[:, :vocabulary].uniform_(generator=generator)
        self.targets = torch.randint(0, vocabulary, (rows,), device=device, generator=generator, dtype=torch.int32)

    def candidates(self, name: str) -> list[Gemm]:
        """The kernels that can compute the GEMM `name` of this head, the shipped one first."""
        return [gemm for gemm in self.choices[name] if gemm.takes(self.width, aligned=True)]

    def kernel(self, name: str, gemm: Gemm) -> Kernel:
        """The GEMM `name` by one of its kernels."""
        plan = replace(self.plan, **{name: gemm})  # type: ignore[arg-type]
        return {"logits": self._logits, "hidden": self._hidden, "weight": self._weight}[name](plan)

    def exact(self, name: str) -> Tensor:
        """SAMPLE rows of the result in float32: of E, E W, or E^T h."""
        few, v = slice(SAMPLE), self.vocabulary
        if name == "logits":
            z = self.hidden[few].float() @ self.weight.float().t()
            exps = (z - z.gather(1, self.targets[few, None].long())).exp()
            return exps.scatter_(1, self.targets[few, None].long(), 0.0)
        if name == "hidden":
            return self.exps[few, :v].float() @ self.weight.float()
        return self.exps[:, :v][:, few].float().t() @ self.hidden.float()

    def bare(self, name: str) -> Callable[[], Tensor]:
        """The matrix product alone, by the vendor's BLAS in the dtype of the head."""
        h, w, e = self.hidden, self.weight, self.exps[:, : self.vocabulary].to(self.hidden.dtype)
        return {"logits": lambda: h @ w.t(), "hidden": lambda: e @ w, "weight": lambda: e.t() @ h}[name]

    def _logits(self, plan: Plan) -> Kernel:
        shape = (plan.tiles(self.vocabulary), self.rows)
        target_logit, target_slope = (torch.empty(self.rows, device=self.device) for _ in range(2))
        sums, moments, tops = (torch.empty(shape, device=self.device) for _ in range(3))
        stride = plan.exps_stride(self.vocabulary)
        exps = torch.empty(self.rows, stride, dtype=plan.exps_dtype, device=self.device)
        buffers = launch.LogitsBuffers(
            self.hidden,
            self.targets,
            inverse_temperature=torch.ones(self.rows, device=self.device),
            anchor=(self.hidden.float() * self.weight[self.targets.long()].float()).sum(-1),
            target_logit=target_logit,
            target_slope=target_slope,
            sums=sums,
            moments=moments,
            tops=tops,
            exps=(exps,),
        )
        head = launch.Head(self.weight, None, None)

        return Kernel(
            run=lambda: launch.logits(plan, head, buffers),
            sample=lambda: exps[:SAMPLE, : self.vocabulary].float(),
        )

    def _hidden(self, plan: Plan) -> Kernel:
        """With the sum of its parts, since kernels differ in their number."""
        out = torch.empty(self.rows, self.width, device=self.device)
        factor = torch.ones(self.rows, device=self.device)
        rows = torch.arange(self.rows, device=self.device)

        return Kernel(
            run=lambda: launch.scatter(launch.hidden_product(plan, self.exps, self.weight), factor, rows, out),
            sample=lambda: out[:SAMPLE],
        )

    def _weight(self, plan: Plan) -> Kernel:
        """Added to a sum that is there, as in all chunks but the first."""
        total = ChunkSum(self.weight)
        scaled = self.hidden.to(self.exps.dtype)

        return Kernel(
            run=lambda: launch.add_weight_product(plan, self.exps, scaled, total),
            sample=lambda: _sum(total.high[:SAMPLE], None if total.low is None else total.low[:SAMPLE]),
        )


def _sum(high: Tensor, low: Tensor | None) -> Tensor:
    """The numbers of a `ChunkSum`, float32."""
    if low is None:
        return high
    return ((high.int() << 16) | (low.int() << 8)).view(torch.float32)
