"""How the three GEMMs are launched: the arguments that kernels by pointers and by descriptors take.

Operands lie side by side: (M, D) hidden states, (M, exps_stride) E, and M a multiple of every tile's rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import plan as plans
from ..plan import Gemm, Plan
from .kernels.hidden import hidden_kernel
from .kernels.hidden_descriptors import hidden_descriptors_kernel
from .kernels.logits import logits_kernel
from .kernels.logits_descriptors import logits_descriptors_kernel
from .kernels.redo import redo_kernel
from .kernels.scatter import scatter_kernel
from .kernels.weight import weight_kernel
from .kernels.weight_descriptors import weight_descriptors_kernel
from .weight_sum import ChunkSum

# Programs that look for rows with a bad anchor, for each tile of rows.
REDO_PROGRAMS = 8
# Persistent programs in the interpreter, so that each has several tiles.
INTERPRETED_PROGRAMS = 3


@dataclass(frozen=True)
class LogitsBuffers:
    """What the logits kernels read, hidden (M, D) and numbers (M,), and what they find.

    target_logit, target_slope: (M,), the target's raw logit and the cap's slope there.
    sums, moments, tops:        (tiles, M), of vocabulary tiles.
    exps:                       E and, with a soft-cap and an entropy coefficient, z - a, (M, exps_stride); else none.
    """

    hidden: Tensor
    targets: Tensor
    inverse_temperature: Tensor
    anchor: Tensor
    target_logit: Tensor
    target_slope: Tensor
    sums: Tensor
    moments: Tensor
    tops: Tensor
    exps: tuple[Tensor, ...]

    @property
    def options(self) -> dict[str, bool]:
        return {"KEEP": bool(self.exps), "KEEP_DISTANCES": len(self.exps) > 1}


@dataclass(frozen=True)
class Head:
    """The head's weight (V, D), bias (V,) and soft-cap."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    @property
    def softcap_arguments(self) -> tuple[float, float]:
        cap = float(self.softcap or 1.0)
        return cap, 1.0 / cap

    @property
    def options(self) -> dict[str, bool]:
        return {"HAS_BIAS": self.bias is not None, "HAS_SOFTCAP": self.softcap is not None}

    @property
    def bias_or_unused(self) -> Tensor:
        return self.weight if self.bias is None else self.bias


def logits(plan: Plan, head: Head, buffers: LogitsBuffers) -> None:
    gemm = plan.logits
    (rows, width), (vocabulary, _) = buffers.hidden.shape, head.weight.shape
    tile = _tile(plan, gemm) | {"PARTS": gemm.PARTS}
    if gemm.PARTS > 1 and any(head.options.values()):
        tile["PARTS"] *= 2  # more values live at once
    inputs = head.bias_or_unused, buffers.targets, buffers.inverse_temperature, buffers.anchor
    found = buffers.target_logit, buffers.target_slope
    sums = buffers.sums, buffers.moments, buffers.tops
    if gemm.kernel == "descriptors":
        columns = gemm.BN // tile["PARTS"]
        exps, distances = _two([_descriptor(x, gemm.BM, columns) for x in buffers.exps])
        logits_descriptors_kernel[_programs(head.weight, rows // gemm.BM * plan.tiles(vocabulary))](
            _descriptor(buffers.hidden, gemm.BM, gemm.BK), _descriptor(head.weight, gemm.BN, gemm.BK), *inputs, *found,
            exps, distances, *sums, rows, vocabulary, width, *head.softcap_arguments,
            **head.options, **buffers.options, **tile,
        )  # fmt: skip
        return
    exps, distances = _two(buffers.exps)
    logits_kernel[(rows // gemm.BM, plan.tiles(vocabulary))](
        buffers.hidden, head.weight, *inputs, *found, exps, distances, *sums,
        rows, vocabulary, width, head.weight.stride(0), plan.exps_stride(vocabulary), *head.softcap_arguments,
        **head.options, **buffers.options, EVEN_D=width % gemm.BK == 0, **tile,
    )  # fmt: skip


def redo(plan: Plan, head: Head, buffers: LogitsBuffers, flagged: Tensor) -> None:
    """The logits again, of the rows in `flagged` (M,) int8."""
    gemm = plan.redo
    (rows, width), (vocabulary, _) = buffers.hidden.shape, head.weight.shape
    exps, distances = _two(buffers.exps)
    redo_kernel[(rows // gemm.BM, REDO_PROGRAMS)](
        buffers.hidden, head.weight, head.bias_or_unused, buffers.targets, buffers.inverse_temperature, buffers.anchor,
        flagged, buffers.target_logit, buffers.target_slope, exps, distances,
        buffers.sums, buffers.moments, buffers.tops,
        rows, vocabulary, width, head.weight.stride(0), plan.exps_stride(vocabulary), plan.tiles(vocabulary),
        *head.softcap_arguments, **head.options, **buffers.options,
        BLOCKS=plan.logits.BN // gemm.BN, **_tile(plan, gemm), PARTS=gemm.PARTS,
    )  # fmt: skip


def hidden_product(plan: Plan, exps: Tensor, weight: Tensor) -> Tensor:
    """E W in parts of the sum over the vocabulary, (splits, M, D) fp32."""
    gemm, rows, (vocabulary, width) = plan.hidden, len(exps), weight.shape
    splits = gemm.SPLITS
    partial = torch.empty(splits, rows, width, dtype=torch.float32, device=exps.device)
    if gemm.kernel == "matmul":
        for block, out in zip(exps[:, :vocabulary].split(gemm.BM), partial[0].split(gemm.BM), strict=True):
            _multiply(block, weight, out)
        return partial
    length = triton.cdiv(triton.cdiv(vocabulary, splits), gemm.BK) * gemm.BK
    if gemm.kernel == "descriptors":
        tiles = rows // gemm.BM * triton.cdiv(width, gemm.BN) * splits
        hidden_descriptors_kernel[_programs(weight, tiles)](
            _descriptor(exps, gemm.BM, gemm.BK), _descriptor(weight, gemm.BK, gemm.BN),
            _descriptor(partial.view(splits * rows, width), gemm.BM, gemm.BN // gemm.PARTS),
            rows, width, length, splits, PARTS=gemm.PARTS, **_tile(plan, gemm),
        )  # fmt: skip
        return partial
    hidden_kernel[(rows // gemm.BM, triton.cdiv(width, gemm.BN), splits)](
        exps, weight, partial, rows, vocabulary, width, weight.stride(0), exps.stride(0), length, **_tile(plan, gemm)
    )
    return partial


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, with sums in fp32."""
    if a.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:  # in tests: PyTorch has this product on GPUs alone
        torch.mm(a.float(), b.float(), out=out)


def scatter(partial: Tensor, factor: Tensor, rows: Tensor, out: Tensor) -> None:
    """out[rows] = factor times the sum of the parts (splits, M, D); factor and rows are (n,)."""
    n, (splits, padded, width) = rows.numel(), partial.shape
    scatter_kernel[(triton.cdiv(n, plans.ROWS), triton.cdiv(width, plans.BLOCK))](
        partial, factor, rows, out, n, padded, width, SPLITS=splits, ROWS=plans.ROWS, BLOCK=plans.BLOCK
    )


def add_weight_product(plan: Plan, exps: Tensor, scaled_hidden: Tensor, total: ChunkSum) -> None:
    """Add E^T (factor h) to the sum."""
    gemm, rows, (vocabulary, width) = plan.weight, len(exps), total.high.shape
    tile = _tile(plan, gemm) | {"PARTS": gemm.PARTS, "FIRST": not total.begun}
    if gemm.kernel == "descriptors":
        assert total.low is not None
        tiles = triton.cdiv(width, gemm.BN) * triton.cdiv(vocabulary, gemm.BM)
        high, low = (_descriptor(x, gemm.BM, gemm.BN // gemm.PARTS) for x in (total.high, total.low))
        weight_descriptors_kernel[_programs(exps, tiles)](
            _descriptor(exps, gemm.BK, gemm.BM), _descriptor(scaled_hidden, gemm.BK, gemm.BN), high, low,
            rows, vocabulary, width, **tile,
        )  # fmt: skip
    else:
        has_low = total.low is not None
        weight_kernel[(triton.cdiv(width, gemm.BN), triton.cdiv(vocabulary, gemm.BM))](
            exps, scaled_hidden, total.high, total.low, rows, vocabulary, width, exps.stride(0), HAS_LOW=has_low, **tile
        )
    total.begun = True


def _tile(plan: Plan, gemm: Gemm) -> dict[str, Any]:
    return {
        "PRECISION": plan.precision,
        "BM": gemm.BM,
        "BN": gemm.BN,
        "BK": gemm.BK,
        "num_warps": gemm.num_warps,
        "num_stages": gemm.num_stages,
    }


def _programs(on: Tensor, tiles: int) -> tuple[int]:
    """Persistent programs: one for each multiprocessor, at most one for each tile."""
    if plans.INTERPRETED:
        return (min(INTERPRETED_PROGRAMS, tiles),)
    return (min(torch.cuda.get_device_properties(on.device).multi_processor_count, tiles),)


def _descriptor(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Of a matrix, in blocks (rows, columns)."""
    return TensorDescriptor.from_tensor(matrix, [rows, columns])


def _two(found: Any) -> tuple[Any, Any]:
    """The first two of at most two arguments, None for those that are missing."""
    return (*found, None, None)[:2]
