"""The stages of `python -m bench gpu`, the most wanted first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ..losses.comparison import Settings
from ..losses.peers import PEERS
from ..losses.problem import CASES
from .compile_ahead import compile_checks, compile_head
from .measurements import (
    check_chunk,
    check_dtype,
    check_real_shape,
    measure_gemms,
    measure_kernels,
    measure_methods,
    measure_shares,
    measure_tilings,
)
from .rehearsal import crash, hang, rehearsed
from .schedule import Stage


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how large the checks are."""

    settings: Settings
    second_shape: str
    peer_cases: list[str]
    smoke_tokens: int
    check_widths: list[int]  # one that the tiles' step divides, and one that it does not
    check_sizes: dict[str, int]
    compilers: int  # processes that compile at once


def stages(sizes: Sizes) -> list[Stage]:
    s = sizes.settings
    settings = asdict(s)
    head = {"device": s.device, "shape": s.shape}
    small = {"device": s.device, "widths": sizes.check_widths, **sizes.check_sizes}
    workers = [{"worker": i, "workers": sizes.compilers} for i in range(sizes.compilers)]
    second = asdict(replace(s, shape=sizes.second_shape))

    def methods(name: str, settings: dict[str, Any], cases: list[str], peers: list[str], needs: float) -> Stage:
        arguments = {"settings": settings, "cases": cases, "peers": peers}
        return Stage(name, "methods", measure_methods, arguments, needs, 4 * needs)

    def checks(dtype: str) -> Stage:
        arguments = {"dtype": dtype, "shape": s.shape, "tokens": sizes.smoke_tokens, **small}
        return Stage(f"checks, {dtype}", "checks", check_dtype, arguments, 15, 75)

    smoke = {**head, "dtype": "bfloat16", "tokens": sizes.smoke_tokens}
    whole = {**head, "dtype": "bfloat16", "tokens": s.tokens}
    return [
        Stage("compile", "compiled", compile_head, {**head, "tokens": s.tokens}, 10, 75, workers),
        Stage("smoke test", "checks", check_chunk, smoke, 8, 45),
        Stage("bare GEMMs", "gemms", measure_gemms, {**head, "repeats": s.repeats}, 8, 30),
        Stage("kernels", "kernels", measure_kernels, {"settings": settings}, 10, 45),
        methods("upge", settings, list(CASES), [], 25),
        Stage("zero advantages", "no_signal", measure_shares, {"settings": settings}, 15, 60),
        Stage("compile the checks", "compiled", compile_checks, small, 10, 90, workers),
        checks("bfloat16"),
        Stage("real shape", "checks", check_real_shape, whole, 20, 75),
        Stage("settings", "plans", measure_tilings, {"settings": settings}, 40, 100),
        *(methods(f"peers, {case}", settings, [case], list(PEERS), 20) for case in sizes.peer_cases),
        checks("float16"),
        checks("float32"),
        methods(sizes.second_shape, second, ["hpt"], [], 12),
    ]


def rehearsal_stages(sizes: Sizes) -> list[Stage]:
    """The same in the interpreter, with a stage that crashes and one that hangs in the middle."""
    found = [replace(rehearsed(stage), limit=300) for stage in stages(sizes)]  # a CPU may be busy
    faulty = [
        rehearsed(Stage("a crash", "checks", crash, {}, 1, 60)),
        rehearsed(Stage("a hang", "checks", hang, {}, 1, 15)),
    ]
    middle = len(found) // 2
    return found[:middle] + faulty + found[middle:]
