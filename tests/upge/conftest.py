"""Problems for the loss, and the backends that are compared with the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import upge
from torch import Tensor
from upge.backends import chunked, plan

U = 2.0**-24  # unit roundoff of float32


def pytest_configure(config):
    # Kernels may overflow where the result is not used. A GPU does not report that, the interpreter warns.
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered:RuntimeWarning")


@dataclass
class Problem:
    """A head, its tokens and everything that any objective may read."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    targets: Tensor
    inputs: dict = field(default_factory=dict)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.hidden, self.weight, self.bias]

    def loss(self, objectives, backend: str, scale: float = 1.0, **changes):
        """Run forward and backward; returns the output and the gradients of hidden, weight and bias."""
        for leaf in self.leaves:
            leaf.grad = None
        out = upge.fused_policy_loss(
            self.hidden, self.weight, self.targets, objectives, backend=backend, bias=self.bias, **self.inputs | changes
        )
        (out.loss * scale).backward()
        return out, [leaf.grad for leaf in self.leaves]

    def in_float64(self, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """log pi(y), entropy and log-sum-exp, written out; differentiable."""
        logits = (self.hidden.double() @ self.weight.double().t() + self.bias.double()) / temperature
        log_p = torch.log_softmax(logits, -1)
        logprobs = log_p.gather(1, self.targets[:, None]).squeeze(1)
        return logprobs, -(log_p.exp() * log_p).sum(1), torch.logsumexp(logits, 1)

    def check(self, backend: str, objective, want: Tensor, **changes):
        """Compares the loss and its gradients with `want`, the loss written out. Returns the output."""
        wanted = torch.autograd.grad(want, self.leaves, retain_graph=True)
        out, grads = self.loss(objective, backend, **changes)
        torch.testing.assert_close(out.loss.double(), want.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out.token_loss.sum(), out.loss.detach(), rtol=1e-5, atol=1e-6)
        self.assert_gradients(grads, wanted)
        return out

    @staticmethod
    def assert_gradients(got, want) -> None:
        for a, b in zip(got, want, strict=True):
            assert float((a.double() - b.double()).norm() / b.double().norm()) <= 2e-5

    def logit_error(self) -> float:
        """Bound of the rounding error of a logit summed in float32: D u sum_i |h_i w_i| (Higham 2002, eq. 3.5)."""
        products = self.hidden.detach().double().abs() @ self.weight.detach().double().abs().t()
        return float(((self.hidden.shape[1] + 1) * U * (products + self.bias.detach().double().abs())).max())


def make_problem(n=150, d=24, v=301, dtype=torch.float32, seed=0, spread=0.5) -> Problem:
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g)
    problem = Problem(
        hidden=randn(n, d).to(dtype).requires_grad_(),
        weight=(spread * randn(v, d)).to(dtype).requires_grad_(),
        bias=randn(v).to(dtype).requires_grad_(),
        targets=torch.randint(0, v, (n,), generator=g),
    )
    if n:
        now = upge.linear_logprobs(
            *(x.detach() for x in (problem.hidden, problem.weight)),
            problem.targets,
            bias=problem.bias.detach(),
            backend="reference",
        ).logprobs
    else:
        now = torch.empty(0)
    # Ratios on both sides of every clip, groups of a few tokens, a fifth of them masked.
    problem.inputs = {
        "advantages": randn(n),
        "old_logprobs": now + 0.3 * randn(n),
        "ref_logprobs": now + 0.3 * randn(n),
        "rollout_logprobs": now + 0.3 * randn(n),
        "sequence_ids": torch.randint(0, 9, (n,), generator=g),
        "weights": torch.rand(n, generator=g) / max(n, 1),
        "mask": torch.rand(n, generator=g) < 0.8,
    }
    return problem


@pytest.fixture(autouse=True)
def interpreter(interpreter_as_gpu):
    """For every test of the kernels."""


@pytest.fixture(params=["pointers", "descriptors"])
def gemm_kernels(request, monkeypatch):
    """The Triton GEMMs with operands by pointers, and by descriptors where dtype and width allow it."""
    if request.param == "descriptors":
        monkeypatch.setattr(plan, "choices", by_descriptors(plan.choices))
    return request.param


def by_descriptors(choices):
    """`plan.choices` with small tiles by descriptors first. No width of the tests is a multiple of all their blocks."""

    def found(hidden, weight, capability):
        gemms = choices(hidden, weight, capability)
        bits16 = torch.promote_types(hidden, weight).itemsize == 2
        options = {"num_warps": 1, "num_stages": 1, "widths": 8 if bits16 else 4}
        first = {
            "logits": [plan.Gemm("descriptors", 64, 128, 32, PARTS=2, **options)],
            "hidden": [plan.Gemm("descriptors", 64, 32, 64, PARTS=2, SPLITS=3, **options)],
            # The bytes of the sum ask for more than its 16-bit parts. A sum in float32 has no kernel by descriptors.
            "weight": [plan.Gemm("descriptors", 64, 32, 32, PARTS=2, **options | {"widths": 16})] if bits16 else [],
        }
        return {name: (*first[name], *gemms[name]) for name in gemms}

    return found


@pytest.fixture
def problem():
    return make_problem


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    return request.param


@pytest.fixture(params=["torch", "triton", "reference"])
def any_backend(request):
    return request.param


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 64 rows in blocks of a few rows, and weights cast in slabs of 256: every loop runs more than once."""
    monkeypatch.setattr(chunked, "CHUNK_BYTES", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(chunked, "BLOCK_BYTES", 5 * 4 * 301)
    monkeypatch.setattr(chunked, "SLAB_BYTES", 1)
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    monkeypatch.setattr(plan, "FROZEN_CHUNK_BYTES", 1)
