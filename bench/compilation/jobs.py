"""What to compile: every kernel, as the tiling for each dtype launches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from upge.backends import tiling as tilings
from upge.backends.triton.weight_sum import FINISH_BLOCK
from upge.backends.triton.workspace import VECTOR_BLOCK

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
SPLIT_SUM = {"high": "*i16", "low": "*i8"}


@dataclass(frozen=True)
class Job:
    """One kernel to compile: its constants, the types of its pointers, and how many warps and stages it gets."""

    kernel: str
    dtype: str
    variant: str
    constants: dict[str, Any]
    pointers: dict[str, str]
    num_warps: int = 4
    num_stages: int = 3
    gemm: bool = False
    aligned: bool = True


def jobs(capability: tuple[int, int], dtypes: list[str]) -> Iterator[Job]:
    """The jobs for a GPU of this compute capability. A kernel that is the same for several dtypes comes once."""
    for dtype in dtypes:
        yield from _gemms(dtype, capability)
        yield from _passes(dtype, capability)
    block = {"ROWS": tilings.ROWS, "BLOCK": tilings.BLOCK}
    yield Job("reanchor", "", "", block, {})
    yield Job("rows", "", "", block, {})
    flags = dict.fromkeys(("HAS_IMPORTANCE", "HAS_INDEX", "HAS_ADVANTAGES", "HAS_OLD", "HAS_ENTROPY", "HAS_KL"), True)
    yield Job("coefficient", "", "all", {**flags, "BLOCK": VECTOR_BLOCK}, {})


def _gemms(dtype: str, capability: tuple[int, int]) -> Iterator[Job]:
    """The three GEMMs, with the head's options where they change the code, and for a width that BK does not divide."""
    even = tilings.tiling_for(DTYPES[dtype], capability, 4096)
    odd = tilings.tiling_for(DTYPES[dtype], capability, 4095)
    plain = {
        "KEEP": True,
        "KEEP_DISTANCES": False,
        "REDO": False,
        "EVEN_D": True,
        "HAS_BIAS": False,
        "HAS_SOFTCAP": False,
    }
    has_low = {"HAS_LOW": dtype != "float32"}
    yield _gemm("logits", dtype, "", plain, even)
    yield _gemm("logits", dtype, "no_grad", plain | {"KEEP": False}, even)
    yield _gemm("logits", dtype, "redo", plain | {"REDO": True}, even)
    yield _gemm("logits", dtype, "bias", plain | {"HAS_BIAS": True}, even)
    yield _gemm("logits", dtype, "softcap", plain | {"HAS_SOFTCAP": True}, even)
    yield _gemm("logits", dtype, "softcap, entropy", plain | {"HAS_SOFTCAP": True, "KEEP_DISTANCES": True}, even)
    yield _gemm("logits", dtype, "bias, softcap", plain | {"HAS_BIAS": True, "HAS_SOFTCAP": True}, even)
    yield _gemm("hidden", dtype, "", {}, even)
    yield _gemm("weight", dtype, "", has_low, even)
    if dtype == "float32":  # and a weight in bf16, whose gradient is summed in three bytes
        mixed = tilings.tiling_for(torch.float32, capability, 4096, torch.bfloat16)
        yield _gemm("logits", dtype, "bf16 weight", plain, mixed)
        yield _gemm("hidden", dtype, "bf16 weight", {}, mixed)
        yield _gemm("weight", dtype, "bf16 weight", {"HAS_LOW": True}, mixed)
    yield _gemm("logits", dtype, "odd D", plain | {"EVEN_D": False}, odd, aligned=False)
    yield _gemm("hidden", dtype, "odd D", {}, odd, aligned=False)
    yield _gemm("weight", dtype, "odd D", has_low, odd, aligned=False)


def _gemm(
    kernel: str, dtype: str, variant: str, constants: dict[str, Any], tiling: tilings.Tiling, aligned: bool = True
) -> Job:
    tile: tilings.Tile = getattr(tiling, kernel)
    shape = {"BM": tile.BM, "BN": tile.BN, "BK": tile.BK, "SPLIT": tile.SPLIT, "PRECISION": tiling.precision}
    pointers = _pointers(dtype, tiling)
    if kernel == "weight":
        pointers["hidden"] = pointers["exps"]
        if constants["HAS_LOW"]:
            pointers |= SPLIT_SUM
    return Job(kernel, dtype, variant, shape | constants, pointers, tile.num_warps, tile.num_stages, True, aligned)


def _passes(dtype: str, capability: tuple[int, int]) -> Iterator[Job]:
    """The kernels whose code depends on the dtype but that are not GEMMs."""
    tiling = tilings.tiling_for(DTYPES[dtype], capability, 4096)
    pointers = _pointers(dtype, tiling)
    block = {"ROWS": tilings.ROWS, "BLOCK": tilings.BLOCK}
    yield Job("anchor", dtype, "bias, softcap", {"HAS_BIAS": True, "HAS_SOFTCAP": True, **block}, pointers)
    if tiling.exps == DTYPES[dtype]:  # fp16 has the E of fp32
        yield Job("logit_gradient", dtype, "softcap, k", {"HAS_SOFTCAP": True, "HAS_K": True, **block}, pointers)
        factor = {"HAS_SOFTCAP": True, "HAS_K": True, "BLOCK": VECTOR_BLOCK}
        yield Job("row_factor", dtype, "softcap, k", factor, pointers)
        yield Job("bias", dtype, "", {"BM": 64, "BN": 128}, pointers)
    if dtype != "float32":
        out = "*i16" if dtype == "bfloat16" else POINTERS[DTYPES[dtype]]
        yield Job("finish", dtype, "", {"BLOCK": FINISH_BLOCK}, {**SPLIT_SUM, "out": out})


def _pointers(dtype: str, tiling: tilings.Tiling) -> dict[str, str]:
    weight = POINTERS[tiling.weight_dtype or DTYPES[dtype]]
    return {
        "hidden": POINTERS[DTYPES[dtype]],
        "weight": weight,
        "bias": weight,
        "exps": POINTERS[tiling.exps],
        "distances": POINTERS[tiling.exps],
    }
