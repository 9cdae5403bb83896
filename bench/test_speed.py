"""The speed of the loss and of its passes, for pytest-benchmark: `pytest bench --benchmark-only`.

Each benchmark has a name that does not change from commit to commit, so that `--benchmark-compare` finds its partner.
A pass is timed on one chunk of tokens. What it needs of the passes before it is made anew before every round, untimed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from upge.backends.chunked import ChunkedWorkspace
from upge.backends.plan import GEMMS
from upge.backends.workspace import Statistics, Workspace
from upge.inputs import HeadInputs, NeededGradients
from upge.token_loss import Coefficients

from .losses.measure import clear_gradients, forward_backward
from .losses.problem import CASES, SHAPES, Problem, make_problem

ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if ON_GPU else ("cpu", torch.float32)
TOKENS = {"rehearsal": 256} | ({"qwen2.5-1.5b": 4096, "qwen2.5-7b": 4096} if ON_GPU else {"smollm2-135m": 640})
ROUNDS = 10

each_shape = pytest.mark.parametrize("shape", TOKENS)
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="Triton kernels are measured on a GPU, and PyTorch sees none here")

MakeWorkspace = Callable[[HeadInputs, NeededGradients], Workspace]


@each_shape
@pytest.mark.parametrize("case", CASES)
def test_loss(benchmark: BenchmarkFixture, case: str, shape: str) -> None:
    """Forward and backward, with dh and dW, by the backend that "auto" takes."""
    problem = _problem(shape, case)

    def run() -> None:
        forward_backward(Problem.fused, problem)
        clear_gradients(problem)

    _measure(benchmark, run)


@each_shape
def test_torch_forward(benchmark: BenchmarkFixture, shape: str) -> None:
    """The first GEMM and the statistics of a chunk."""
    chunk = Chunk(ChunkedWorkspace, shape, NeededGradients())
    _measure(benchmark, chunk.forward)


@each_shape
def test_torch_logit_gradient(benchmark: BenchmarkFixture, shape: str) -> None:
    """From a chunk's E to the gradient of its logits. Without dh and dW, this is the whole backward."""
    chunk = Chunk(ChunkedWorkspace, shape, NeededGradients())
    _measure(benchmark, chunk.backward, before=chunk.forward)


@each_shape
@pytest.mark.parametrize("gradient", ["hidden", "weight"])
def test_torch_backward(benchmark: BenchmarkFixture, gradient: str, shape: str) -> None:
    """The logit gradient of a chunk, and one of the two GEMMs that follow it."""
    chunk = Chunk(ChunkedWorkspace, shape, NeededGradients(**{gradient: True}))
    _measure(benchmark, chunk.backward, before=chunk.forward)


@needs_gpu
@each_shape
def test_triton_forward(benchmark: BenchmarkFixture, shape: str) -> None:
    """The kernels that store a chunk's E and its statistics."""
    from upge.backends.triton.workspace import TritonWorkspace  # imports triton

    chunk = Chunk(TritonWorkspace, shape, NeededGradients(hidden=True, weight=True))
    _measure(benchmark, chunk.forward)


@needs_gpu
@each_shape
@pytest.mark.parametrize("gradient", ["hidden", "weight"])
def test_triton_backward(benchmark: BenchmarkFixture, gradient: str, shape: str) -> None:
    """The kernels from a chunk's E to one of the two gradients."""
    from upge.backends.triton.workspace import TritonWorkspace  # imports triton

    chunk = Chunk(TritonWorkspace, shape, NeededGradients(**{gradient: True}))
    _measure(benchmark, chunk.backward, before=chunk.forward)


@needs_gpu
@each_shape
@pytest.mark.parametrize("gemm", GEMMS)
def test_triton_gemm(benchmark: BenchmarkFixture, gemm: str, shape: str) -> None:
    """The kernel of one GEMM, as shipped. `python -m upge tune` times the others too."""
    from upge.tuning.chunk import Chunk as TuningChunk  # imports triton

    width, vocabulary = SHAPES[shape]
    chunk = TuningChunk(vocabulary, width, DTYPE, DEVICE)
    _measure(benchmark, chunk.kernel(gemm, chunk.candidates(gemm)[0]).run)


class Chunk:
    """The first chunk of a batch in a workspace. Every token has the coefficient of SFT."""

    statistics: Statistics

    def __init__(self, make_workspace: MakeWorkspace, shape: str, needs: NeededGradients):
        problem = _problem(shape, "sft")
        head = HeadInputs(problem.hidden.detach(), problem.weight.detach(), problem.targets)
        self.workspace = make_workspace(head, needs)
        self.rows: Tensor = self.workspace.chunks(torch.arange(head.token_count, device=DEVICE))[0]
        self.coefficients = Coefficients(-problem.weights[self.rows])

    def forward(self) -> None:
        self.statistics = self.workspace.forward(self.rows, keep=True)

    def backward(self) -> None:
        self.workspace.backward(self.rows, self.statistics, self.coefficients)


@cache
def _problem(shape: str, case: str) -> Problem:
    return make_problem(shape, TOKENS[shape], DTYPE, DEVICE, case)


def _measure(benchmark: BenchmarkFixture, run: Callable[[], object], before: Callable[[], None] | None = None) -> None:
    """Time `run` until the device has finished it."""

    def prepare() -> None:
        if before is not None:
            before()
        _wait()

    def timed() -> None:
        run()
        _wait()

    benchmark.pedantic(timed, setup=prepare, rounds=ROUNDS, warmup_rounds=1)


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()
