"""Time the kernels of one GEMM side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from ..diagnosis.checks import BOUNDS, DTYPES
from ..diagnosis.timing import gpu_seconds
from .chunk import Chunk


def time_candidates(
    name: str,
    vocabulary: int,
    width: int,
    dtype: str = "bfloat16",
    device: str = "cuda",
    repeats: int = 20,
    rows: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Each kernel of the GEMM `name`, and the bare product. JSON rows; kernels that fail come first.

    Of each: gemm (its settings, None for the bare product), shipped (whether it is the plan's first choice), seconds
    (the best of `repeats` interleaved runs), slowest, tflops, and error (relative, of a sample of the result). Of one
    that cannot run or is wrong: gemm, shipped and fault.
    """
    chunk = Chunk(vocabulary, width, DTYPES[dtype], device, rows)
    _, bound = BOUNDS[DTYPES[dtype]]  # that of a gradient: a kernel with a larger error is refused
    exact = chunk.exact(name)
    found: list[tuple[dict[str, Any], Callable[[], object]]] = []
    for number, gemm in enumerate(chunk.candidates(name)):
        row: dict[str, Any] = {"gemm": asdict(gemm), "shipped": number == 0}
        print(f"{name}: {gemm}", flush=True)  # shown if the kernel crashes
        try:
            kernel = chunk.kernel(name, gemm)
            kernel.run()
            sample = kernel.sample()
        except Exception as error:  # a kernel that does not fit the GPU must not end the others
            yield row | {"fault": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            continue
        row["error"] = float((sample - exact).norm() / (exact.norm() or 1.0))  # E of one entry, the target, is 0
        if row["error"] <= bound:
            found.append((row, kernel.run))
        else:
            yield row | {"fault": f"wrong: its relative error is {row['error']:.1e}"}
    found.append(({"gemm": None, "shipped": False}, chunk.bare(name)))
    times: list[list[float]] = [[] for _ in found]
    for turn in range(repeats + 1):
        for index, (_, run) in enumerate(found):
            taken = _seconds(run, device)
            if turn:  # the first warms up
                times[index].append(taken)
    work = 2 * chunk.rows * vocabulary * width
    for (row, _), taken_all in zip(found, times, strict=True):
        best = min(taken_all)
        yield row | {"seconds": best, "slowest": max(taken_all), "tflops": work / best / 1e12}


def _seconds(run: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    return gpu_seconds(run)
