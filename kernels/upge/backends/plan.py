"""Tiles, precisions and memory of the Triton kernels, by dtype and architecture. Tiles do not depend on N.

The shapes were chosen by what the compiler makes of them (`python -m bench compile`): the largest ones without register
spills, 128 x 256 where the tensor cores take operands from shared memory (sm_90, sm_100).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

# Bytes of a chunk of tokens. Every chunk reads and writes the whole sum of dW, so few large ones are faster; where the
# weight is frozen some 1,000 rows are as good.
CHUNK_BYTES = 800 << 20
FROZEN_CHUNK_BYTES = 400 << 20
MAX_CHUNK_ROWS = 8192
# Parts of the vocabulary in the GEMM of dh: enough programs to fill a GPU from few tokens.
HIDDEN_PARTS = 4
# The interpreter runs programs one after the other in NumPy: there, few programs of much work each.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Rows and columns of a program of the kernels that sum or change a row's entries.
ROWS, BLOCK = (64, 256) if INTERPRETED else (4, 512)


@dataclass(frozen=True)
class Tile:
    """A GEMM's block of the result (BM, BN), its step BK, and how many warps and loads in flight work on it."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    SPLIT: bool = False  # the epilogue works on parts of the tile in turn


@dataclass(frozen=True)
class Plan:
    """The kernels' settings for one dtype of hidden states and weight."""

    dtype: torch.dtype
    logits: Tile
    hidden: Tile
    weight: Tile
    exps: torch.dtype  # of the stored E
    precision: str  # of fp32 operands in a dot
    # Largest z - anchor that E may hold. exp overflows at 88, but the row's factor g / total, which meets E in the
    # GEMMs, must not underflow either: e^40 leaves it 20 decades.
    limit: float = 40.0


WIDE = Tile(128, 256, 64, 8, 3, SPLIT=True)
SQUARE = Tile(128, 128, 64, 8, 3)
# Where BK does not divide D, loads need masks and addresses are not aligned: larger tiles spill.
UNEVEN = Tile(64, 128, 32, 8, 3)
TF32 = Tile(128, 128, 32, 8, 3)
FP32 = Tile(64, 128, 32, 8, 3)


def plan_for(dtype: torch.dtype, capability: tuple[int, int], width: int) -> Plan:
    """The plan for a head of a dtype and width D on a GPU of compute capability (major, minor)."""
    if INTERPRETED:
        logits, gradients = Tile(64, 128, 16, 1, 1), Tile(64, 32, 64, 1, 1)
    elif dtype == torch.float32:
        logits = gradients = FP32
    elif width % WIDE.BK:
        logits = gradients = UNEVEN
    elif dtype == torch.float16:
        logits, gradients = SQUARE, TF32
    else:
        logits = gradients = WIDE if capability[0] in (9, 10) else SQUARE
    if dtype == torch.bfloat16:
        return Plan(dtype, logits, gradients, gradients, exps=torch.bfloat16, precision="ieee")
    # E in fp16 would overflow from e^11 on. tf32 holds an fp16 operand exactly and has the exponents of fp32.
    precision = "tf32" if dtype == torch.float16 else "ieee"
    return Plan(dtype, logits, gradients, gradients, exps=torch.float32, precision=precision)


def exps_stride(plan: Plan, vocabulary: int) -> int:
    """Entries of a row of E: every kernel may read whole tiles of it."""
    widths = (plan.logits.BN, plan.hidden.BK, plan.weight.BM)
    return max(-(-vocabulary // width) * width for width in widths)


def row_bytes(plan: Plan, vocabulary: int, width: int) -> dict[str, int]:
    """Bytes of one token of a chunk where most is alive: its hidden states, E, and what the making of dh takes.

    That is HIDDEN_PARTS parts of dh in fp32, their sum and its rounding; or three fp32 numbers of each vocabulary tile
    before it, where the width is very small.
    """
    tiles = -(-vocabulary // plan.logits.BN)
    rounding = width * 2 if plan.dtype == torch.bfloat16 else 0
    return {
        "hidden": width * plan.dtype.itemsize,
        "E": exps_stride(plan, vocabulary) * plan.exps.itemsize,
        "dh": max((HIDDEN_PARTS + 1) * width * 4 + rounding, 3 * tiles * 4),
    }


def chunk_rows(plan: Plan, vocabulary: int, width: int, sums_weight: bool) -> int:
    """Rows of a chunk: as many tiles as fit the budget. It depends on V, D and the dtype alone, never on N."""
    budget = CHUNK_BYTES if sums_weight else FROZEN_CHUNK_BYTES
    rows = min(MAX_CHUNK_ROWS, budget // sum(row_bytes(plan, vocabulary, width).values()))
    return max(1, rows // plan.logits.BM) * plan.logits.BM


def extra_bytes(plan: Plan, tokens: int, vocabulary: int, width: int, sums_weight: bool = True) -> dict[str, int]:
    """Bytes that a forward and backward of `tokens` tokens takes beyond its inputs, dh and dW, by part.

    Vectors of one number a token are left out: some 100 bytes a token.
    """
    rows = min(tokens, chunk_rows(plan, vocabulary, width, sums_weight))
    parts = {name: rows * size for name, size in row_bytes(plan, vocabulary, width).items()}
    parts["dW"] = vocabulary * width if sums_weight and plan.dtype.itemsize == 2 else 0  # the third byte of its sum
    parts["dh in fp32"] = tokens * width * 2 if plan.dtype == torch.float16 else 0  # until it has met a loss scale
    return parts
