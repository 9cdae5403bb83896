"""Time, peak memory and error of one forward and backward."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ._problem import Problem


def seconds(run: Callable[[], object], device: str) -> float:
    """Elapsed on a GPU; on a CPU the processor time of this process, to which other processes add nothing."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    start_time = time.process_time()
    run()
    return time.process_time() - start_time


def extra_bytes(run: Callable[[], object], device: str, gradients: int) -> int:
    """Peak memory of `run` beyond what was there before and the gradients it leaves behind."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before - gradients
    # Linux: give freed memory back first, or the call would reuse it unseen; writing 5 resets the resident set's peak.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before - gradients


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def truth(problem: Problem) -> tuple[Tensor, Tensor]:
    """dh and dW of the problem in float64."""
    wide = Problem(**vars(problem))
    wide.hidden, wide.weight = (x.detach().double().requires_grad_() for x in (problem.hidden, problem.weight))
    logits = wide.hidden @ wide.weight.t()
    logprobs = torch.log_softmax(logits, -1).gather(1, wide.targets[:, None]).squeeze(1)
    dh, dw = torch.autograd.grad(wide.surrogate(logprobs), [wide.hidden, wide.weight])
    return dh, dw


def gradient_errors(loss: Callable[[Problem], Tensor], problem: Problem, want: tuple[Tensor, Tensor]) -> list[float]:
    """Norm of the error of dh and dW, relative to their norm."""
    got = torch.autograd.grad(loss(problem), [problem.hidden, problem.weight])
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True)]
