"""Compile kernels by several processes, into Triton's cache on disk, before they are needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import upge
from torch import Tensor
from triton.runtime.jit import KernelInterface
from triton.tools.tensor_descriptor import TensorDescriptor
from upge.backends.plan import GEMMS
from upge.diagnosis.checks import DTYPES, check_values

from ..losses.problem import CASES, SHAPES, Problem
from .measurements import measure_candidates

Row = dict[str, Any]


def compile_head(worker: int, workers: int, device: str, shape: str, tokens: int) -> Iterator[Row]:
    """This worker's share of what the losses of a real model's head launch, in bfloat16."""
    width, vocabulary = SHAPES[shape]
    zeros = torch.zeros(tokens, device=device)
    is_sft = torch.arange(tokens, device=device) % 2 == 0
    hidden, weight = (torch.zeros(n, width, dtype=torch.bfloat16, device=device) for n in (tokens, vocabulary))
    with compiling_only(worker, workers) as rows:
        for case in CASES:
            heads = hidden.requires_grad_(), weight.requires_grad_()
            Problem(*heads, zeros.long(), zeros + 1, zeros, is_sft, case).fused("triton").backward()
        with torch.no_grad():
            upge.linear_logprobs(hidden, weight, zeros.long(), backend="triton")
    yield from rows


def compile_checks(worker: int, workers: int, device: str, widths: list[int], n: int, v: int) -> Iterator[Row]:
    """This worker's share of what the small checks launch; `check_bits` launches nothing more."""
    with compiling_only(worker, workers) as rows:
        for dtype in DTYPES:
            for width in widths:
                for _ in check_values(device, dtype, n=n, width=width, v=v):
                    pass
    yield from rows


def compile_candidates(worker: int, workers: int, device: str, shape: str, rows: int | None) -> Iterator[Row]:
    """This worker's share of all kernels of the plan for a real model's head."""
    with compiling_only(worker, workers) as compiled:
        for gemm in GEMMS:
            for _ in measure_candidates(gemm, device, shape, repeats=1, rows=rows):
                pass
    yield from compiled


@contextmanager
def compiling_only(worker: int, workers: int) -> Iterator[list[Row]]:
    """Within it no kernel runs. Every launch is compiled by one of the workers. The rows: what this one compiled.

    All workers must make the same launches in the same order.
    """
    launches: dict[str, int] = {}
    rows: list[Row] = []

    def compile_only(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            name = f"{kernel.__name__} {[_kind(value) for value in args]} {sorted(kwargs.items())}"
            if name not in launches:
                launches[name] = len(launches)
                if launches[name] % workers == worker:
                    start = time.monotonic()
                    kernel.run(*args, grid=grid, warmup=True, **kwargs)
                    rows.append({"kernel": kernel.__name__, "seconds": time.monotonic() - start})

        return launch

    kernel_launch = KernelInterface.__getitem__
    KernelInterface.__getitem__ = compile_only
    try:
        yield rows
    finally:
        KernelInterface.__getitem__ = kernel_launch


def _kind(value: Any) -> Any:
    """What the compiler may specialise an argument by."""
    if isinstance(value, Tensor):
        return value.dtype
    if isinstance(value, TensorDescriptor):
        return value.base.dtype, value.block_shape
    if isinstance(value, int):
        return value == 1, value % 16 == 0
    return type(value)
