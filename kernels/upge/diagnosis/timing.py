"""The time of what a GPU runs, and the matrix products that any method needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gpu_seconds(run: Callable[[], object]) -> float:
    """The time that the GPU takes for what `run` launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1000


def bare_gemms(hidden: Tensor, weight: Tensor) -> None:
    """h W^T, G W and G^T h by the vendor's BLAS in the inputs' dtype: 6 NVD, the least that an exact method needs.

    In chunks of 2048 rows. The result of the first GEMM is the operand of the others; nothing else is computed.
    """
    for rows in hidden.split(2048):
        g = rows @ weight.t()
        g @ weight
        g.t() @ rows
