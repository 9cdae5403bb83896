"""The time that the kernels of one call should take: a roofline, with what no tensor core works during added.

A GEMM takes the longer of its computation and its memory traffic. A multiprocessor computes its tiles one after the
other. A tile takes its steps, each the longer of what the tensor cores and the issue of instructions need, then the
epilogue, which nothing overlaps where only one program fits a multiprocessor. A program per tile also waits for its
first operands. All other kernels take the time of their memory traffic. The CPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from upge.backends import plan as plans
from upge.backends.plan import Gemm, Plan

from .instructions import Counts
from .rates import FLOPS_PER_CYCLE, REGISTERS, SCHEDULERS, SHARED_BYTES, TF32_FLOPS_PER_CYCLE, Assumptions, Gpu


@dataclass(frozen=True)
class Program:
    """A compiled GEMM kernel."""

    counts: Counts
    registers: int  # of a thread
    shared: int  # bytes


@dataclass(frozen=True)
class Work:
    """One GEMM over a chunk: its steps along the sum, tiles of the result, and bytes of memory traffic."""

    gemm: Gemm
    steps: int
    tiles: int
    traffic: float
    flops_per_cycle: int


@dataclass(frozen=True)
class Predicted:
    """All launches of one kernel in a call."""

    kernel: str
    calls: int
    seconds: float


def gemm_seconds(work: Work, program: Program, gpu: Gpu, assumed: Assumptions) -> float:
    gemm, counts = work.gemm, program.counts
    persistent = gemm.kernel == "descriptors"
    busy = assumed.descriptors_busy if persistent else assumed.pointers_busy
    threads = 32 * gemm.num_warps
    together = max(1, min(REGISTERS // (program.registers * threads), SHARED_BYTES // max(1, program.shared)))
    multiplying = 2 * gemm.BM * gemm.BN * gemm.BK / work.flops_per_cycle / busy
    issuing = counts.step * gemm.num_warps / SCHEDULERS
    outside = (counts.start + counts.epilogue) * gemm.num_warps / SCHEDULERS * assumed.stall
    trips = counts.round_trips + (0 if persistent else 1)  # the first operands of a program
    # Programs that share a multiprocessor work during each other's epilogues.
    tile = work.steps * max(multiplying, issuing) + (outside + trips * assumed.latency) / together
    rounds = ceil(work.tiles / (gpu.multiprocessors * together)) * together
    return max(rounds * tile / assumed.clock, work.traffic / (gpu.bandwidth * assumed.bandwidth))


def chunks_of(plan: Plan, tokens: int, vocabulary: int, width: int) -> tuple[int, int]:
    """Rows of a chunk, and how many chunks there are."""
    rows = plans.balanced(tokens, plans.chunk_rows(plan, vocabulary, width, True), plan.granule)
    return rows, ceil(tokens / rows)


def chunk_work(plan: Plan, rows: int, vocabulary: int, width: int, first: bool) -> dict[str, Work]:
    """The three GEMMs of a chunk of so many rows, by name. first: whether the sum of dW has no numbers yet."""
    size, e = plan.dtype.itemsize, plan.exps_dtype.itemsize
    exps, weight = rows * plan.exps_stride(vocabulary) * e, vocabulary * width
    partial = plan.hidden.SPLITS * rows * width * 4
    sums = weight * (3 if plan.weight_dtype.itemsize == 2 else 4) * (1 if first else 2)
    row_sums = 3 * plan.tiles(vocabulary) * rows * 4
    gradients = FLOPS_PER_CYCLE if e == 2 else TF32_FLOPS_PER_CYCLE

    def steps(total: int, gemm: Gemm) -> int:
        return ceil(total / gemm.BK)

    def tiles(m: int, n: int, gemm: Gemm) -> int:
        return ceil(m / gemm.BM) * ceil(n / gemm.BN)

    return {
        "logits": Work(
            plan.logits,
            steps(width, plan.logits),
            tiles(rows, vocabulary, plan.logits),
            (rows + vocabulary) * width * size + exps + row_sums,
            FLOPS_PER_CYCLE,
        ),
        "hidden": Work(
            plan.hidden,
            steps(ceil(vocabulary / plan.hidden.SPLITS), plan.hidden),
            tiles(rows, width, plan.hidden) * plan.hidden.SPLITS,
            exps + weight * size + partial,
            gradients,
        ),
        "weight": Work(
            plan.weight,
            steps(rows, plan.weight),
            tiles(vocabulary, width, plan.weight),
            exps + rows * width * e + sums,
            gradients,
        ),
    }


def pass_traffic(plan: Plan, rows: int, vocabulary: int, width: int) -> dict[str, float]:
    """Bytes that the other kernels of a chunk read and write, by kernel. Vectors of a number per token are left out."""
    size, tiles = plan.dtype.itemsize, plan.tiles(vocabulary)
    return {
        "gather": 3 * rows * width * size,
        "reanchor": tiles * rows * 4,
        "redo": 0,  # looks for rows with a bad anchor, and finds none
        "rows": 2 * tiles * rows * 4,
        "coefficient": 0,
        "row_factor": 0,
        "scatter": rows * width * (4 * plan.hidden.SPLITS + plan.hidden_dtype.itemsize),
        "scaled_hidden": rows * width * (size + plan.exps_dtype.itemsize),
    }


def predict(
    plan: Plan,
    programs: Mapping[str, Program],
    tokens: int,
    vocabulary: int,
    width: int,
    gpu: Gpu,
    assumed: Assumptions,
) -> list[Predicted]:
    """The kernels of one forward and backward pass over a head with a 16-bit weight, in the order of a chunk.

    programs: the compiled GEMMs "logits", "hidden", "weight, first chunk", and "weight" if there are further chunks.
    """
    rows, chunks = chunks_of(plan, tokens, vocabulary, width)
    memory = gpu.bandwidth * assumed.bandwidth
    first, later = (chunk_work(plan, rows, vocabulary, width, begins) for begins in (True, False))
    seconds = {name: chunks * gemm_seconds(later[name], programs[name], gpu, assumed) for name in ("logits", "hidden")}
    seconds["weight"] = gemm_seconds(first["weight"], programs["weight, first chunk"], gpu, assumed)
    if chunks > 1:
        seconds["weight"] += (chunks - 1) * gemm_seconds(later["weight"], programs["weight"], gpu, assumed)
    for name, traffic in pass_traffic(plan, rows, vocabulary, width).items():
        seconds[name] = chunks * traffic / memory
    predicted = [Predicted(name, chunks, total + chunks * assumed.launch) for name, total in seconds.items()]
    once = {
        "zeros of dh": tokens * width * plan.hidden_dtype.itemsize,
        "finish": vocabulary * width * (3 + plan.weight_dtype.itemsize),
    }
    return predicted + [Predicted(name, 1, traffic / memory + assumed.launch) for name, traffic in once.items()]


def bare_seconds(tokens: int, vocabulary: int, width: int, assumed: Assumptions) -> float:
    """Three bare GEMMs: 6 NVD."""
    return 6 * tokens * vocabulary * width / assumed.bare
