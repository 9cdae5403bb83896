"""Tiles, precisions and memory of the Triton kernels, by dtype and architecture. Does not import Triton.

Tiles do not depend on N. Their shapes were chosen from the compiler's output (`python -m bench compile`): the largest
without register spills, which is 128 x 256 where tensor cores read their operands from shared memory (sm_90, sm_100).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

# Bytes of a chunk of tokens. Every chunk reads and writes the whole sum of dW, so few large chunks are faster. If the
# weight is frozen, about 1,000 rows are as fast.
CHUNK_BYTES = 800 << 20
FROZEN_CHUNK_BYTES = 400 << 20
MAX_CHUNK_ROWS = 8192
# Into how many parts the GEMM of dh splits the vocabulary: enough programs to fill a GPU even with few tokens.
HIDDEN_PARTS = 4
# The interpreter runs programs one after the other in NumPy, so there it is faster to run few large ones.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Rows and columns per program in the kernels that sum or change a row's entries.
ROWS, BLOCK = (64, 256) if INTERPRETED else (4, 512)


@dataclass(frozen=True)
class Tile:
    """A GEMM's block of the result (BM, BN), its step BK, the warps that compute it, and the loads in flight."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    SPLIT: bool = False  # whether the epilogue works on parts of the tile in turn, for fewer registers


@dataclass(frozen=True)
class Tiling:
    """The kernels' settings for one dtype of hidden states and one of the weight."""

    dtype: torch.dtype  # in which they are multiplied: the wider of the two, float32 for bfloat16 with float16
    logits: Tile
    hidden: Tile
    weight: Tile
    exps: torch.dtype  # of the stored E
    precision: str  # of fp32 operands in a dot
    # Largest z - anchor that E may hold. exp overflows at 88. But the row's factor g / total, which multiplies E in the
    # GEMMs, must not underflow either: e^40 leaves it 20 decades.
    limit: float = 40.0
    hidden_dtype: torch.dtype | None = None  # None: `dtype`
    weight_dtype: torch.dtype | None = None
    per_entry: int = 1  # how many numbers of that dtype are stored per token and vocabulary entry


WIDE = Tile(128, 256, 64, 8, 3, SPLIT=True)
SQUARE = Tile(128, 128, 64, 8, 3, SPLIT=True)
# If BK does not divide D, loads need masks and addresses are not aligned: larger tiles spill.
UNEVEN = Tile(64, 128, 32, 8, 3)
TF32 = Tile(128, 128, 32, 8, 3)
FP32 = Tile(64, 128, 32, 8, 3)
# For a 16-bit weight that is widened in registers. With more rows Triton 3.7 multiplies in tf32 on sm_100, whatever the
# precision, and with loads in flight it widens a whole tile at once, which does not fit the registers.
WIDENED = Tile(32, 128, 32, 8, 1)


def tiling_for(
    hidden: torch.dtype, capability: tuple[int, int], width: int, weight: torch.dtype | None = None, per_entry: int = 1
) -> Tiling:
    """The tiling for hidden states (N, D) and a weight (V, D) on a GPU of compute capability (major, minor).

    hidden, weight: their dtypes; the weight's is that of the hidden states unless given.
    width:          D.
    per_entry:      2 for a head with a soft-cap whose entropies need gradients, else 1.
    """
    weight = hidden if weight is None else weight
    dtype = torch.promote_types(hidden, weight)
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
    widens = dtype == torch.float32 and weight != dtype and not INTERPRETED
    # E in fp16 would overflow from e^11 on. tf32 holds an fp16 operand exactly and has the exponents of fp32.
    exps = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    precision = "tf32" if dtype == torch.float16 else "ieee"
    return Tiling(
        dtype,
        logits=WIDENED if widens else logits,
        hidden=WIDENED if widens else gradients,
        weight=gradients,
        exps=exps,
        precision=precision,
        hidden_dtype=hidden,
        weight_dtype=weight,
        per_entry=per_entry,
    )


def exps_stride(tiling: Tiling, vocabulary: int) -> int:
    """Entries of a row of E, padded so that every kernel can read whole tiles."""
    widths = (tiling.logits.BN, tiling.hidden.BK, tiling.weight.BM)
    return max(-(-vocabulary // width) * width for width in widths)


def row_bytes(tiling: Tiling, vocabulary: int, width: int) -> dict[str, int]:
    """Bytes per token of a chunk at the peak: its hidden states, E, and the buffers of dh.

    The latter are HIDDEN_PARTS parts of dh in fp32, their sum and its rounding. For a very small width, three fp32
    numbers per vocabulary tile, which come before, are more.
    """
    tiles = -(-vocabulary // tiling.logits.BN)
    rounding = width * 2 if (tiling.hidden_dtype or tiling.dtype) == torch.bfloat16 else 0
    return {
        "hidden": width * tiling.dtype.itemsize,
        "E": exps_stride(tiling, vocabulary) * tiling.exps.itemsize * tiling.per_entry,
        "dh": max((HIDDEN_PARTS + 1) * width * 4 + rounding, 3 * tiles * 4),
    }


def chunk_rows(tiling: Tiling, vocabulary: int, width: int, sums_weight: bool) -> int:
    """Rows of a chunk: as many tiles as fit the budget. Depends only on V, D and the dtype, never on N."""
    budget = CHUNK_BYTES if sums_weight else FROZEN_CHUNK_BYTES
    rows = min(MAX_CHUNK_ROWS, budget // sum(row_bytes(tiling, vocabulary, width).values()))
    return max(1, rows // tiling.logits.BM) * tiling.logits.BM


def extra_bytes(tiling: Tiling, tokens: int, vocabulary: int, width: int, sums_weight: bool = True) -> dict[str, int]:
    """Bytes that the forward and backward of `tokens` tokens take in addition to their inputs, dh and dW, by part.

    Vectors of one number per token are left out: about 100 bytes per token.
    """
    rows = min(tokens, chunk_rows(tiling, vocabulary, width, sums_weight))
    parts = {name: rows * size for name, size in row_bytes(tiling, vocabulary, width).items()}
    hidden, weight = tiling.hidden_dtype or tiling.dtype, tiling.weight_dtype or tiling.dtype
    parts["dW"] = vocabulary * width if sums_weight and weight.itemsize == 2 else 0  # the third byte of its sum
    parts["dh in fp32"] = tokens * width * 2 if hidden == torch.float16 else 0  # until a loss scale multiplied it
    return parts
