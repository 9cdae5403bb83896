"""Time, peak memory and error of one forward and backward."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from upge.diagnosis.timing import gpu_seconds

from .problem import Problem


def seconds(run: Callable[[], object], device: str) -> float:
    """Elapsed time. With one thread on a CPU, the processor time of this process."""
    if device == "cuda":
        return gpu_seconds(run)
    clock = time.process_time if _by_processor_time(device) else time.perf_counter
    start_time = clock()
    run()
    return clock() - start_time


def clock_name(device: str) -> str:
    """What `seconds` measures on this device with the present number of threads."""
    return "the processor time of the process" if _by_processor_time(device) else "elapsed time"


def _by_processor_time(device: str) -> bool:
    # The processor time of one thread is its elapsed time on an idle machine, and leaves out other processes. That of
    # several threads also counts those that wait for another, since OpenMP spins. Elapsed time does not, and there the
    # best of many rounds leaves out other processes.
    return device == "cpu" and torch.get_num_threads() == 1


def forward_backward(loss: Callable[[Problem], Tensor], problem: Problem) -> Tensor:
    """Run both passes; the loss, detached. The gradients stay in the problem until `clear_gradients`."""
    value = loss(problem)
    value.backward()
    return value.detach()


def clear_gradients(problem: Problem) -> None:
    problem.hidden.grad = problem.weight.grad = None


def processor(device: str) -> str:
    """The name of the GPU or the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", information.read_text()) if information.exists() else []
    return names[0] if names else platform.machine()


def extra_bytes(run: Callable[[], object], device: str, gradients: int) -> int:
    """Peak memory of `run`, without what was allocated before and without `gradients`, the bytes of its gradients."""
    peak = PeakMemory(device)
    run()
    return peak.growth() - gradients


class PeakMemory:
    """The peak memory from here on. before: bytes that are in use now, on a CPU those of the whole process."""

    def __init__(self, device: str):
        self.device = device
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            # Linux: return freed memory first, or it would be used again unnoticed. Writing 5 resets the peak.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _resident("VmRSS")

    def growth(self) -> int:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.before
        return _resident("VmHWM") - self.before


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def exact_gradients(problem: Problem) -> tuple[Tensor, Tensor]:
    """dh and dW of the problem in float64."""
    wide = Problem(**vars(problem))
    wide.hidden, wide.weight = (x.detach().double().requires_grad_() for x in (problem.hidden, problem.weight))
    logits = wide.hidden @ wide.weight.t()
    logprobs = torch.log_softmax(logits, -1).gather(1, wide.targets[:, None]).squeeze(1)
    dh, dw = torch.autograd.grad(wide.surrogate(logprobs), [wide.hidden, wide.weight])
    return dh, dw


def gradient_errors(loss: Callable[[Problem], Tensor], problem: Problem, exact: tuple[Tensor, Tensor]) -> list[float]:
    """The norm of the error of dh and dW, relative to the norm of `exact`."""
    got = torch.autograd.grad(loss(problem), [problem.hidden, problem.weight])
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
