"""The stages of `python -m bench gpu`, the most wanted first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from upge.backends.plan import GEMMS

from ..losses.comparison import Settings
from ..losses.peers import PEERS
from ..losses.problem import CASES
from .compile_ahead import compile_candidates, compile_checks, compile_head
from .measurements import (
    check_chunk,
    check_dtype,
    check_real_shape,
    measure_candidates,
    measure_gemms,
    measure_kernels,
    measure_methods,
    measure_shares,
)
from .rehearsal import crash, hang, rehearsed
from .schedule import Stage


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how large the checks are."""

    settings: Settings
    second_shape: str
    peer_cases: list[str]
    chunk_tokens: int
    candidate_rows: int | None  # of the chunk on which kernels are compared; None: those of the plan
    check_widths: list[int]  # one that the tiles' step divides, and one that it does not
    check_tokens: int
    check_vocabulary: int
    compilers: int  # processes that compile at once


def stages(sizes: Sizes) -> list[Stage]:
    s = sizes.settings
    settings = asdict(s)
    second = asdict(replace(s, shape=sizes.second_shape))
    head = {"device": s.device, "shape": s.shape}
    candidates = {**head, "rows": sizes.candidate_rows}
    small = {"device": s.device, "widths": sizes.check_widths, "n": sizes.check_tokens, "v": sizes.check_vocabulary}
    workers = [{"worker": i, "workers": sizes.compilers} for i in range(sizes.compilers)]

    def chunk(name: str, dtype: str, limit: float) -> Stage:
        return Stage(name, "heads", check_chunk, {**head, "dtype": dtype, "tokens": sizes.chunk_tokens}, 8, limit)

    def small_checks(dtype: str) -> Stage:
        return Stage(f"small calls, {dtype}", "checks", check_dtype, {"dtype": dtype, **small}, 10, 60)

    def methods(name: str, settings: dict[str, Any], cases: list[str], peers: list[str], needs: float) -> Stage:
        arguments = {"settings": settings, "cases": cases, "peers": peers}
        return Stage(name, "methods", measure_methods, arguments, needs, 4 * needs)

    def sweep(gemm: str) -> Stage:
        arguments = {"gemm": gemm, "repeats": s.repeats, **candidates}
        return Stage(f"kernels for {gemm}", "candidates", measure_candidates, arguments, 10, 60)

    whole = {**head, "dtype": "bfloat16", "tokens": s.tokens}
    return [
        chunk("smoke test", "bfloat16", 75),  # first: it compiles the few kernels that it needs itself
        Stage("compile", "compiled", compile_head, {**head, "tokens": s.tokens}, 10, 75, workers),
        Stage("bare GEMMs", "gemms", measure_gemms, {**head, "repeats": s.repeats}, 8, 30),
        Stage("kernels", "kernels", measure_kernels, {"settings": settings}, 10, 45),
        methods("upge", settings, list(CASES), [], 25),
        Stage("zero advantages", "no_signal", measure_shares, {"settings": settings}, 15, 60),
        Stage("compile small calls", "compiled", compile_checks, small, 10, 75, workers),
        small_checks("bfloat16"),
        Stage("real shape", "heads", check_real_shape, whole, 20, 75),
        Stage("compile candidates", "compiled", compile_candidates, candidates, 10, 75, workers),
        *map(sweep, GEMMS),
        *(methods(f"peers, {case}", settings, [case], list(PEERS), 20) for case in sizes.peer_cases),
        chunk("real shape, float16", "float16", 45),
        small_checks("float16"),
        small_checks("float32"),
        methods(f"upge, {sizes.second_shape}", second, ["hpt"], [], 12),
    ]


def rehearsal_stages(sizes: Sizes) -> list[Stage]:
    """The same in the interpreter, with a stage that crashes and one that hangs in the middle."""
    found = [replace(rehearsed(stage), limit=300) for stage in stages(sizes)]  # a CPU may be busy
    faulty = [
        rehearsed(Stage("a crash", "checks", crash, {}, 1, 60)),
        rehearsed(Stage("a hang", "checks", hang, {}, 1, 25)),
    ]
    middle = len(found) // 2
    return found[:middle] + faulty + found[middle:]
