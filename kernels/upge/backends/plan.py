"""How the Triton backend computes: kernels, tiles and precisions by architecture and dtype, and the memory of a call.

Does not import Triton. Nothing here depends on N. Tiles were chosen from the compiler's output (`python -m bench
compile`): the largest without register spills. No choice has been measured on a GPU yet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

GEMMS = ("logits", "hidden", "weight")
# Bytes of a chunk of tokens. Every chunk reads and writes the whole sum of dW, so few large chunks are faster. If the
# weight is frozen, about 1,000 rows are as fast.
CHUNK_BYTES = 800 << 20
FROZEN_CHUNK_BYTES = 400 << 20
MAX_CHUNK_ROWS = 8192
# The interpreter runs programs one after the other in NumPy, so there it is faster to run few large ones.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Rows and columns per program in the kernels that read or change a row's entries, and rows and vocabulary tiles in
# those that add up a row's partial sums. They divide the rows of a tile.
ROWS, BLOCK = (64, 256) if INTERPRETED else (4, 512)
SUM_ROWS, SUM_TILES = (64, 256) if INTERPRETED else (16, 64)


@dataclass(frozen=True)
class Gemm:
    """How one of the three GEMMs is computed.

    kernel "pointers":    a program per tile, whose threads load the operands.
    kernel "descriptors": persistent programs that load tiles by tensor descriptors (TMA, from sm_90 on).
    kernel "matmul":      torch.mm in blocks of BM rows, so that a row's bits do not depend on the others. Only dh.
    """

    kernel: str
    BM: int  # the block of the result (BM, BN), and the step BK of the sum
    BN: int = 0
    BK: int = 0
    num_warps: int = 8
    num_stages: int = 3  # loads in flight
    PARTS: int = 1  # the epilogue works on so many parts of the tile in turn, which takes fewer registers
    SPLITS: int = 1  # of the sum over the vocabulary in dh: its result has too few tiles to fill a GPU
    widths: int = 1  # the kernel takes widths D that are multiples of this

    def takes(self, width: int, aligned: bool) -> bool:
        """Whether it can compute a head of this width. aligned: rows of the weight begin at multiples of 16 bytes."""
        return width % self.widths == 0 and (aligned or self.kernel == "pointers")


def _pointers(BM: int, BN: int, BK: int, **options: int) -> Gemm:
    return Gemm("pointers", BM, BN, BK, **options)


def _descriptors(BM: int, BN: int, BK: int, **options: int) -> Gemm:
    # A row's bytes are a multiple of 16, also those of the byte sum of dW.
    return Gemm("descriptors", BM, BN, BK, widths=16, **options)


Choices = Mapping[str, tuple[Gemm, ...]]

# For each GEMM its kernels, best first. The first that takes the width is used. `upge tune` times all that take it.
# 128 x 256 fits the registers where tensor cores read their operands from shared memory (sm_90, sm_100).
# If 64 does not divide D, loads by pointers need masks and addresses are not aligned: there larger tiles spill.
_UNEVEN = {
    "logits": (_pointers(64, 128, 32),),
    "hidden": (_pointers(64, 128, 32, SPLITS=4),),
    "weight": (_pointers(64, 128, 32),),
}
# In fp16 on sm_80 the sum of dW spills a register unless it works in parts.
_UNEVEN_IN_PARTS = _UNEVEN | {"weight": (_pointers(64, 128, 32, PARTS=2),)}
_SQUARE = {
    "logits": (_pointers(128, 128, 64, PARTS=2, widths=64),),
    "hidden": (_pointers(128, 128, 64, SPLITS=4, widths=64),),
    "weight": (_pointers(128, 128, 64, PARTS=2, widths=64),),
}
_WIDE = {
    "logits": (_pointers(128, 256, 64, PARTS=4, widths=64),),
    "hidden": (_pointers(128, 256, 64, SPLITS=4, widths=64),),
    "weight": (_pointers(128, 256, 64, PARTS=2, widths=64),),
}
_HOPPER = {
    "logits": (
        _descriptors(128, 256, 64, num_stages=4, PARTS=4),
        _descriptors(128, 256, 64, num_stages=3, PARTS=4),
        _descriptors(128, 256, 64, num_stages=4, PARTS=8),
    ),
    "hidden": (
        _descriptors(128, 256, 64, num_stages=4, PARTS=4, SPLITS=4),
        _descriptors(128, 256, 64, num_stages=3, PARTS=4, SPLITS=2),
        Gemm("matmul", 1024, widths=16),
    ),
    "weight": (
        _descriptors(128, 256, 64, num_stages=3, PARTS=2),
        _descriptors(128, 256, 64, num_stages=3, PARTS=4),
        _descriptors(128, 256, 64, num_stages=4, PARTS=8),
    ),
}
# Exact fp32 has no tensor cores. Rows that are computed again take the last tile: with the first one registers spill.
_FLOAT32 = {
    "logits": (_pointers(64, 128, 32), _pointers(32, 64, 32)),
    "hidden": (_pointers(64, 128, 32, SPLITS=4),),
    "weight": (_pointers(64, 128, 32),),
}
# For a 16-bit weight that is widened to fp32 in registers. With more rows Triton 3.7 multiplies in tf32 on sm_100,
# whatever the precision, and with loads in flight it widens a whole tile at once, which does not fit the registers.
_WIDENED = {
    "logits": (_pointers(32, 128, 32, num_stages=1), _pointers(32, 64, 32, num_stages=1)),
    "hidden": (_pointers(32, 128, 32, num_stages=1, SPLITS=4),),
    "weight": (_pointers(64, 64, 32, num_warps=4),),
}
# fp16 operands, but E in fp32: its GEMMs are in tf32.
_HALF = {
    "logits": (_pointers(128, 128, 64, PARTS=2, widths=64),),
    "hidden": (_pointers(128, 128, 32, SPLITS=4, widths=64),),
    "weight": (_pointers(128, 128, 32, widths=64),),
}
_HOPPER_HALF = {
    "logits": (
        _descriptors(128, 256, 64, num_stages=3, PARTS=4),
        _descriptors(128, 256, 64, num_stages=3, PARTS=8),
    ),
    "hidden": (
        _descriptors(128, 256, 32, num_stages=3, PARTS=4, SPLITS=4),
        _descriptors(128, 128, 64, num_stages=2, PARTS=4, SPLITS=4),
    ),
    "weight": (
        _descriptors(128, 256, 32, num_stages=3, PARTS=2),
        _descriptors(128, 256, 32, num_stages=3, PARTS=4),
        _descriptors(128, 128, 64, num_stages=2, PARTS=4),
    ),
}
_INTERPRETED = {
    "logits": (
        _pointers(64, 128, 16, num_warps=1, num_stages=1),
        _descriptors(64, 128, 32, num_warps=1, num_stages=1, PARTS=2),
    ),
    "hidden": (
        _pointers(64, 32, 64, num_warps=1, num_stages=1, SPLITS=4),
        _descriptors(64, 32, 64, num_warps=1, num_stages=1, PARTS=2, SPLITS=3),
        Gemm("matmul", 64),
    ),
    "weight": (_pointers(64, 32, 64, num_warps=1, num_stages=1),),
}
# A sum of dW in fp32 has no kernel by descriptors.
_INTERPRETED_16_BIT = {
    "logits": (),
    "hidden": (),
    "weight": (_descriptors(64, 32, 32, num_warps=1, num_stages=1, PARTS=2),),
}


def _in_order(*tables: Choices) -> Choices:
    return {name: tuple(gemm for table in tables for gemm in table[name]) for name in GEMMS}


CHOICES: dict[tuple[str, torch.dtype], Choices] = {
    ("sm_80", torch.bfloat16): _in_order(_SQUARE, _UNEVEN),
    ("sm_90", torch.bfloat16): _in_order(_HOPPER, _WIDE, _UNEVEN),
    ("sm_100", torch.bfloat16): _in_order(_WIDE, _UNEVEN),
    ("sm_80", torch.float16): _in_order(_HALF, _UNEVEN_IN_PARTS),
    ("sm_90", torch.float16): _in_order(_HOPPER_HALF, _HALF, _UNEVEN),
    ("sm_100", torch.float16): _in_order(_HALF, _UNEVEN),
    ("sm_80", torch.float32): _FLOAT32,
    ("sm_90", torch.float32): _FLOAT32,
    ("sm_100", torch.float32): _FLOAT32,
}


@dataclass(frozen=True)
class Plan:
    """How a head with one dtype of hidden states and one of the weight is computed."""

    hidden_dtype: torch.dtype
    weight_dtype: torch.dtype
    logits: Gemm
    redo: Gemm  # the logits again, of rows with a bad anchor
    hidden: Gemm
    weight: Gemm
    per_entry: int = 1  # numbers that are stored per token and vocabulary entry
    # Largest z - anchor that E may hold. exp overflows at 88. But the row's factor g / total, which multiplies E in the
    # GEMMs, must not underflow either: e^40 leaves it 20 decades.
    limit: float = 40.0

    @property
    def dtype(self) -> torch.dtype:
        """In which hidden states and weight are multiplied: the wider of the two, float32 for bfloat16 with float16."""
        return torch.promote_types(self.hidden_dtype, self.weight_dtype)

    @property
    def exps_dtype(self) -> torch.dtype:
        """Of the stored E. In fp16 it would overflow from e^11 on."""
        return torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32

    @property
    def precision(self) -> str:
        """Of fp32 operands in a dot. tf32 holds an fp16 operand exactly and has the exponents of fp32."""
        return "tf32" if self.dtype == torch.float16 else "ieee"

    @property
    def granule(self) -> int:
        """The rows of a chunk are padded to a multiple of this."""
        return max(self.logits.BM, self.redo.BM, self.hidden.BM, self.weight.BK)

    def tiles(self, vocabulary: int) -> int:
        """Vocabulary tiles of the logits."""
        return -(-vocabulary // self.logits.BN)

    def exps_stride(self, vocabulary: int) -> int:
        """Entries of a row of E: whole tiles of the logits, which are whole tiles of the other GEMMs too."""
        return self.tiles(vocabulary) * self.logits.BN


def architecture(capability: tuple[int, int]) -> str:
    """The architecture in CHOICES whose kernels a GPU of this compute capability runs."""
    return {9: "sm_90", 10: "sm_100"}.get(capability[0], "sm_80")


def choices(hidden: torch.dtype, weight: torch.dtype, capability: tuple[int, int]) -> Choices:
    """For each GEMM its kernels, best first, for hidden states and a weight of these dtypes."""
    dtype = torch.promote_types(hidden, weight)
    if INTERPRETED:
        return _in_order(_INTERPRETED, _INTERPRETED_16_BIT) if dtype.itemsize == 2 else _INTERPRETED
    if dtype == torch.float32 and weight != dtype:
        return _WIDENED
    return CHOICES[architecture(capability), dtype]


def plan_for(
    hidden: torch.dtype,
    weight: torch.dtype,
    capability: tuple[int, int],
    width: int,
    *,
    aligned: bool = True,
    per_entry: int = 1,
    tuned: Mapping[str, Gemm] | None = None,
) -> Plan:
    """The plan for hidden states (N, D) and a weight (V, D) of these dtypes, on a GPU of compute capability (9, 0) etc.

    width:     D.
    aligned:   whether rows of the weight begin at multiples of 16 bytes.
    per_entry: 2 for a head with a soft-cap whose entropies need gradients, else 1.
    tuned:     what was measured to be best on this GPU (`upge tune`), by GEMM; it replaces the shipped choice.
    """
    able = {
        name: [gemm for gemm in gemms if gemm.takes(width, aligned)]
        for name, gemms in choices(hidden, weight, capability).items()
    }
    best = {name: gemms[0] for name, gemms in able.items()}
    best |= {name: gemm for name, gemm in (tuned or {}).items() if gemm in able[name]}
    # By pointers, of any width, and with the smallest blocks.
    redo = next(gemm for gemm in reversed(able["logits"]) if gemm.kernel == "pointers")
    return Plan(hidden, weight, best["logits"], redo, best["hidden"], best["weight"], per_entry)


def row_bytes(plan: Plan, vocabulary: int, width: int) -> dict[str, int]:
    """Bytes per token of a chunk at the peak: its hidden states, E, and the parts of dh.

    Three fp32 numbers per vocabulary tile, which are there before dh, are more than its parts if D is very small.
    """
    return {
        "hidden": width * plan.dtype.itemsize,
        "E": plan.exps_stride(vocabulary) * plan.exps_dtype.itemsize * plan.per_entry,
        "dh": max(plan.hidden.SPLITS * width * 4, 3 * plan.tiles(vocabulary) * 4),
    }


def chunk_rows(plan: Plan, vocabulary: int, width: int, sums_weight: bool) -> int:
    """The most rows of a chunk: as many as fit the budget. Depends only on V, D and the dtype, never on N."""
    budget = CHUNK_BYTES if sums_weight else FROZEN_CHUNK_BYTES
    rows = min(MAX_CHUNK_ROWS, budget // sum(row_bytes(plan, vocabulary, width).values()))
    return max(1, rows // plan.granule) * plan.granule


def balanced(tokens: int, most: int, granule: int) -> int:
    """Rows of each chunk but the last one: as few chunks as possible, of about the same size."""
    count = -(-tokens // most)
    return -(-tokens // (count * granule)) * granule


def extra_bytes(plan: Plan, tokens: int, vocabulary: int, width: int, sums_weight: bool = True) -> dict[str, int]:
    """Bytes that the forward and backward of `tokens` tokens take in addition to their inputs, dh and dW, by part.

    Vectors of one number per token are left out: about 100 bytes per token.
    """
    rows = balanced(tokens, chunk_rows(plan, vocabulary, width, sums_weight), plan.granule) if tokens else 0
    parts = {name: rows * size for name, size in row_bytes(plan, vocabulary, width).items()}
    byte_sum = sums_weight and plan.weight_dtype.itemsize == 2
    parts["dW"] = vocabulary * width if byte_sum else 0  # the third byte of its sum
    # Until a loss scale has multiplied it.
    parts["dh in fp32"] = tokens * width * 2 if plan.hidden_dtype == torch.float16 else 0
    return parts
