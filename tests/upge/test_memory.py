"""Memory of the fused loss: no tensor is N x V, and the Triton backend takes as much as the plan says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import upge
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from upge.backends import plan as plans

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from upge.backends.triton.kernels.split import sixteen_digits  # noqa: E402
from upge.backends.triton.weight_sum import ChunkSum  # noqa: E402

README = Path(__file__).parents[2] / "kernels/README.md"


class Largest(TorchDispatchMode):
    """The largest storage that any operation in this context returns, in bytes."""

    bytes = 0

    def see(self, storage: torch.UntypedStorage) -> None:
        self.bytes = max(self.bytes, storage.nbytes())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.see(x.untyped_storage())
        return out


class Peak(Largest):
    """The most bytes of all storages that live at once."""

    def __init__(self):
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}

    def see(self, storage):
        self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {k: (ref, size) for k, (ref, size) in self.live.items() if not ref.expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self.live.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", [upge.SFT(), upge.GSPO(0.03, 0.04)], ids=["SFT", "GSPO"])
def test_no_tensor_of_n_by_v(problem, small_chunks, dtype, objective):
    """However many tokens, nothing is larger than dW in fp32, the hidden states or one chunk of logits."""
    n, d, v = 700, 8, 2000
    p = problem(n=n, d=d, v=v, dtype=dtype)
    with Largest() as largest:
        p.loss(objective, "torch", entropy_coef=0.1, softcap=5.0)
        upge.linear_logprobs(p.hidden, p.weight, p.targets).logprobs.sum().backward()
    assert largest.bytes <= max(64 * v, v * d, n * d) * 4


@pytest.mark.parametrize(
    ("dtype", "frozen"),
    [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False), (torch.float32, False)],
)
def test_triton_takes_as_much_as_predicted(problem, monkeypatch, dtype, frozen):
    n, d, v = 300, 64, 1000
    for budget in ("CHUNK_BYTES", "FROZEN_CHUNK_BYTES"):
        monkeypatch.setattr(plans, budget, 600_000)
    p = problem(n=n, d=d, v=v, dtype=dtype)
    p.weight.requires_grad_(not frozen)
    targets = p.targets
    with Peak() as peak:
        loss = upge.fused_policy_loss(p.hidden, p.weight, targets, upge.SFT(), backend="triton").loss
        loss.backward()
    plan = plans.plan_for(dtype, dtype, (0, 0), d)
    assert plans.chunk_rows(plan, v, d, not frozen) in (64, 128)
    gradients = p.hidden.nbytes + (0 if frozen else p.weight.nbytes)
    extra = sum(plans.extra_bytes(plan, n, v, d, not frozen).values())
    inputs = p.hidden.nbytes + p.weight.nbytes + targets.nbytes  # counted if a view of them was made
    assert extra <= peak.bytes - gradients <= extra + 150 * n + inputs, (extra, peak.bytes - gradients, inputs)


def test_the_readme_states_the_memory_of_a_7b_head(monkeypatch):
    """The table has the predicted numbers, and their sum is within the project's 1.5 GiB."""
    monkeypatch.setattr(plans, "INTERPRETED", False)
    plan = plans.plan_for(torch.bfloat16, torch.bfloat16, (9, 0), 3584)
    parts = plans.extra_bytes(plan, 16384, 152064, 3584)
    most = plans.chunk_rows(plan, 152064, 3584, sums_weight=True)
    assert plans.balanced(16384, most, plan.granule) == 2048
    frozen = plans.chunk_rows(plan, 152064, 3584, sums_weight=False)
    assert 1000 < frozen < 1.1 * most / 2  # about 1,000 rows are as fast, with half of the memory
    assert sum(plans.extra_bytes(plan, 8 * most, 152064, 3584).values()) < 1.5 * 2**30
    assert sum(parts.values()) < 1.5 * 2**30
    stated = [int(x.replace(",", "")) for x in re.findall(r"\| ([\d,]+) MiB \|", README.read_text())]
    want = [parts["E"], parts["dW"], parts["dh"], parts["hidden"], sum(parts.values())]
    assert stated == [round(x / 2**20) for x in want]


def test_the_sum_of_dw_keeps_sixteen_bits():
    """Exact for numbers of 24 bits, one rounding for the result, and NaN and inf are kept."""
    total = ChunkSum(torch.empty(4, 1000, dtype=torch.bfloat16))
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-35, 35, 1000)
    bits = x.view(torch.int32)
    bits[0, :4] = torch.tensor([0x7FFFFFFF, 0x7F800000, -1, -0x00800000], dtype=torch.int32)
    bits[1:] &= ~0xFF
    bits[0, 4:] &= ~0xFF
    total.high.copy_((bits >> 16).to(torch.int16))
    total.low.copy_(((bits >> 8) & 0xFF).to(torch.uint8))
    total.begun = True
    x = bits.view(torch.float32)
    factor = torch.tensor(3.0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        torch.testing.assert_close(total.finish(None, dtype, keep=True), x.to(dtype), rtol=0, atol=0, equal_nan=True)
        got = total.finish(factor, dtype, keep=True)
        torch.testing.assert_close(got, (3 * x).to(dtype), rtol=0, atol=0, equal_nan=True)
    got = total.finish(factor, torch.bfloat16, keep=False)
    assert got.data_ptr() == total.total.data_ptr()
    torch.testing.assert_close(got, (3 * x).bfloat16(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def _digits_kernel(x, out, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, sixteen_digits(tl.load(x + i, mask=i < n, other=0.0)), mask=i < n)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_sums_are_rounded_to_the_nearest_of_sixteen_digits():
    """From the smallest normal number to 2^120, ties to even; NaN and infinities do not become numbers."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, generator=g).sign() * (1 + torch.rand(3000, generator=g)) * torch.logspace(-37, 35, 3000)
    ties = (torch.arange(1000) * 2 + 1) * 2.0**-16 + 1.0  # halfway between two numbers of 16 digits, or not
    x = torch.cat([x, ties, -ties, torch.tensor([0.0, -0.0, 1 - 2.0**-24, 2 - 2.0**-23])])
    got = torch.empty(len(x), dtype=torch.int32)
    _digits_kernel[(1,)](x, got, len(x), BLOCK=8192)
    mantissa, exponent = torch.frexp(x.double())
    want = torch.ldexp((mantissa * 2**16).round(), exponent - 16)  # `round` takes ties to even
    assert torch.equal(got.view(torch.float32).double(), want)
    assert not (got & 0xFF).any()
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38])
    got = torch.empty(4, dtype=torch.int32)
    _digits_kernel[(1,)](strange, got, 4, BLOCK=16)
    assert not got.view(torch.float32).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_chunks_sum_as_one(problem, monkeypatch, gemm_kernels, dtype):
    """dW over 8 chunks differs from one chunk's by 2^-16 of the running sum per chunk, and by the last rounding."""
    p = problem(n=512, d=32, v=200, dtype=dtype)
    run = lambda: p.loss(upge.REINFORCE(), "triton", mask=None, rollout_logprobs=None, weights=torch.ones(512))[1][1]
    whole = run().double()
    monkeypatch.setattr(plans, "CHUNK_BYTES", 1)
    # No running sum is larger than the sum of the products' absolute values.
    z = p.hidden.detach().double() @ p.weight.detach().double().t() + p.bias.detach().double()
    slopes = (p.inputs["advantages"].double()[:, None] * torch.softmax(z, -1)).abs()
    slopes.scatter_add_(1, p.targets[:, None], p.inputs["advantages"].double().abs()[:, None])
    sums = slopes.t() @ p.hidden.detach().double().abs()
    last = 2 * (2.0**-8 if dtype == torch.bfloat16 else 2.0**-11)  # of both
    error = (run().double() - whole).abs()
    assert error.max() > 0
    assert (error <= 10 * 2.0**-16 * sums + last * whole.abs() + 2.0**-24).all()
