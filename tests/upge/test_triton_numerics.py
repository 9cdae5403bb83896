"""The Triton kernels against float64 where numbers are extreme: soft-caps, equal and huge logits, p near 0 and 1."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import upge
from torch import Tensor
from upge.backends import plan, reference
from upge.inputs import HeadInputs, NeededGradients
from upge.token_loss import Coefficients

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from upge.backends.triton import TritonWorkspace  # noqa: E402
from upge.backends.triton.kernels.raw_logit import tanh_and_slope  # noqa: E402

U = 2.0**-24  # unit roundoff of float32
BF16 = 2.0**-8  # and of bfloat16
DTYPES = [torch.float32, torch.bfloat16]


pytestmark = pytest.mark.usefixtures("gemm_kernels")


def head(n=70, d=48, v=150, dtype=torch.float32, weight_dtype=None, scale=1.0, bias=False, seed=0, **options):
    g = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=g)
    return HeadInputs(
        (scale * randn(n, d)).to(dtype),
        (randn(v, d) / d**0.5).to(weight_dtype or dtype),
        torch.randint(0, v, (n,), generator=g),
        bias=randn(v).to(weight_dtype or dtype) if bias else None,
        **options,
    )


def identity_head(*rows, dtype=torch.float32, **options):
    """A head whose logits are given: the hidden states are the logits, the weight is the identity. The target is 0."""
    z = torch.tensor(rows, dtype=dtype)
    return HeadInputs(z, torch.eye(z.shape[1], dtype=dtype), torch.zeros(len(z), dtype=torch.int64), **options)


def coefficients(n, parts, seed=1) -> Coefficients:
    """Random g, q and k, or None where `parts` lacks the letter. A fifth of the tokens has g = 0, another one g = k."""
    g = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(n, generator=g) for name in "gqk"}
    values["g"][::5] = 0.0
    if "k" in parts:
        values["g"][1::5] = values["k"][1::5]
    if "g" not in parts:
        values["g"].zero_()
    return Coefficients(values["g"], *(values[name] if name in parts else None for name in "qk"))


def run(inputs: HeadInputs, c: Coefficients | None = None):
    """Statistics and, given coefficients, the gradients of hidden, weight and bias, in float64, as a loss sums them."""
    needs = NeededGradients(c is not None, c is not None, c is not None and inputs.bias is not None)
    workspace = TritonWorkspace(inputs, needs)
    found = []
    for rows in workspace.chunks(torch.arange(inputs.token_count)):
        found.append(workspace.forward(rows, keep=c is not None))
        if c is not None:
            workspace.backward(rows, found[-1], c.at(rows))
    statistics = type(found[0]).cat(found, rows.device)
    dtypes = [inputs.hidden.dtype, inputs.weight.dtype, None if inputs.bias is None else torch.float32]
    grads = workspace.gradients.finish(None, dtypes)
    for got, dtype in zip(grads, dtypes, strict=True):
        assert got is None or got.dtype == dtype
    return statistics, [None if x is None else x.double() for x in grads]


def truth(inputs: HeadInputs, c: Coefficients | None = None):
    """The same by autograd in float64."""
    leaves = [None if x is None else x.double().requires_grad_() for x in (inputs.hidden, inputs.weight, inputs.bias)]
    wide = HeadInputs(*leaves[:2], inputs.targets, leaves[2], inputs.temperature, inputs.softcap)
    statistics = reference.statistics(wide)
    if c is None:
        return statistics, [None] * 3
    terms = ((c.g, statistics.logprobs), (c.q, statistics.entropy), (c.k, statistics.lse))
    loss = sum((a.double() * b).sum() for a, b in terms if a is not None)
    wanted = iter(torch.autograd.grad(loss, [x for x in leaves if x is not None]))
    return statistics, [None if x is None else next(wanted) for x in leaves]


def logit_error(inputs: HeadInputs) -> float:
    """Bound of the error of a logit: a sum of D products in float32 (Higham 2002, eq. 3.5), then 8 u for the cap."""
    products = inputs.hidden.double().abs() @ inputs.weight.double().abs().t()
    if inputs.bias is not None:
        products = products + inputs.bias.double().abs()
    error = (inputs.hidden.shape[1] + 1) * U * products
    if inputs.softcap is not None:
        error = error.clamp(max=2 * inputs.softcap) + 8 * U * products.clamp(max=inputs.softcap)
    return float(error.max()) / inputs.temperature


def assert_statistics(got, want, error: float, slack: float = 1.0):
    """l has the errors of two logits, and a few u of log, exp and their sum."""
    bound = slack * (2 * error + 8 * U * (1 + want.logprobs.detach().abs()))
    assert ((got.logprobs - want.logprobs).abs() <= bound).all()
    assert ((got.lse - want.lse).abs() <= bound + U * want.lse.abs()).all()
    assert ((got.entropy - want.entropy).abs() <= 10 * bound).all()


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@triton.jit
def _tanh_kernel(x, tanh, slope, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value, derivative = tanh_and_slope(tl.load(x + i, mask=i < n, other=0.0))
    tl.store(tanh + i, value, mask=i < n)
    tl.store(slope + i, derivative, mask=i < n)


def test_tanh_and_its_slope_are_relatively_accurate():
    """From the smallest normal number to infinity; the slope until it underflows."""
    size = torch.cat([torch.logspace(-37, 37, 1500), torch.linspace(0.3, 0.8, 500), torch.tensor([0.0, float("inf")])])
    x = torch.cat([size, -size])
    got, slope = torch.empty_like(x), torch.empty_like(x)
    _tanh_kernel[(1,)](x, got, slope, len(x), BLOCK=4096)
    want = torch.tanh(x.double())
    assert ((got - want).abs() <= 6 * U * want.abs()).all()
    assert torch.equal(got.signbit(), x.signbit())
    t = torch.exp(-2 * x.double().abs())
    want = 4 * t / (1 + t) ** 2
    # The exponent 2 |x| is rounded, so exp(-2 |x|) has a relative error of 3 |x| u.
    assert ((slope - want).abs() <= (8 + 4 * x.double().abs().clamp(max=50)) * U * want + 2.0**-126).all()


@pytest.mark.parametrize(("softcap", "dtype"), product([0.1, 1.0, 30.0, 1e6], DTYPES))
def test_softcap(softcap, dtype):
    """Values to the rounding of the logits; gradients to that of E, also where all entries are near the cap."""
    inputs = head(dtype=dtype, scale=4.0, bias=True, softcap=softcap, temperature=0.7)
    for parts in ("g", "q", "gqk"):
        c = coefficients(70, parts)
        (got, grads), (want, wanted) = run(inputs, c), truth(inputs, c)
        assert_statistics(got, want, logit_error(inputs))
        # Of bf16 numbers are E, the factor times h, z - a (for q) and dh or dW, so at most four roundings.
        bound = 2e-5 if dtype == torch.float32 else 2 * BF16
        for a, b in zip(grads, wanted, strict=True):
            assert relative(a, b) <= bound, parts


def test_a_cap_far_above_the_logits_changes_nothing():
    """Where a user means "off", a log-probability is that of the plain head to a few roundings of its logits."""
    plain, capped = head(scale=4.0), head(scale=4.0, softcap=1e6)
    assert_statistics(run(capped)[0], run(plain)[0], 4 * U * 20)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("n", [3, 70])
def test_equal_logits_are_equal(n, temperature):
    """40 logits of 5.8e10, whose ulp is 4096: every target has p = 1/40, and gradients add up to 0."""
    g = torch.Generator().manual_seed(0)
    row, column = (2.4e5 * torch.rand(7, generator=g) for _ in range(2))
    targets = torch.arange(n) % 40
    inputs = HeadInputs(row.expand(n, 7), column.expand(40, 7), targets, temperature=temperature)
    c = Coefficients(torch.ones(n))
    got, (_, weight_gradient, _) = run(inputs, c)
    torch.testing.assert_close(got.logprobs, torch.full((n,), -math.log(40)), rtol=1e-6, atol=0)
    torch.testing.assert_close(got.entropy, torch.full((n,), math.log(40)), rtol=1e-6, atol=0)
    assert got.top1.all()
    counts = torch.bincount(targets, minlength=40)
    want = (counts - n / 40)[:, None] * row / temperature
    torch.testing.assert_close(weight_gradient, want.double(), rtol=1e-4, atol=1e-4 * float(row.max()))


@pytest.mark.parametrize("rows_per_second_anchor", [1, 3])
def test_rows_keep_their_bits_beside_rows_that_are_computed_again(rows_per_second_anchor):
    """Some rows of a tile get a second anchor. The others, and the same rows elsewhere, keep their bits."""
    inputs = head(n=66)
    hidden = inputs.hidden.clone()
    hidden[::rows_per_second_anchor] *= 1e4
    c = coefficients(66, "g")
    whole, (whole_gradient, *_) = run(HeadInputs(hidden, inputs.weight, inputs.targets), c)
    for rows in (torch.arange(66).flip(0), torch.tensor([65]), torch.tensor([4, 3])):
        part, (gradient, *_) = run(HeadInputs(hidden[rows], inputs.weight, inputs.targets[rows]), c.at(rows))
        for name in ("logprobs", "entropy", "lse", "top1"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        assert torch.equal(gradient, whole_gradient[rows])


@pytest.mark.parametrize("margin", [28.0, 29.33, 80.0])
def test_confident_tokens(margin):
    """p = 1 - 1e-12 and beyond, for heads whose anchor is not exactly the target's logit."""
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(64, generator=g).sign() / 8  # of length 1, so that z = 100 to a rounding
    weight = torch.cat([direction[None], (1 - margin / 100) * direction.expand(3, 64)])
    inputs = HeadInputs(100 * direction[None], weight, torch.tensor([0]))
    got, (hidden_gradient, _, _) = run(inputs, Coefficients(torch.ones(1)))
    # float64 would lose 1 - p, so the truth is written out.
    z = (inputs.hidden.double() @ weight.double().t())[0]
    s = 3 * math.exp(z[1] - z[0])
    # A distance of z_y = 100 and another logit has an absolute error of 2 (65 u 100); exp turns it into a relative one.
    rel = 130 * U * 100
    assert got.logprobs.item() == pytest.approx(-math.log1p(s), rel=rel)
    assert got.entropy.item() == pytest.approx(math.log1p(s) + (z[0] - z[1]).item() * s / (1 + s), rel=rel)
    wanted = s / (1 + s) * (weight[0].double() - weight[1].double())
    assert relative(hidden_gradient[0], wanted) <= rel
    assert got.top1.item()


@pytest.mark.parametrize("nll", [39.5, 40.5, 80.0, 200.0, 1e4])
@pytest.mark.parametrize("parts", ["g", "k", "gqk"])
def test_unlikely_targets(nll, parts):
    inputs = identity_head([-nll, 0.0, -1.0, -3.0], [7.0 - nll, 7.0, 6.0, 6.0])
    c = coefficients(2, parts, seed=3)
    c = Coefficients(torch.tensor([1.0, -0.5]) * ("g" in parts), c.q, c.k)
    (got, grads), (want, wanted) = run(inputs, c), truth(inputs, c)
    assert_statistics(got, want, U * nll)
    assert not got.top1.any()
    # exp and log of a distance of up to 40 have a relative and an absolute error of a few u 40.
    error = 2e-6 + 4 * U * min(nll, 40)
    for a, b in zip(grads[:2], wanted[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error)


@pytest.mark.parametrize("parts", ["g", "k", "gqk"])
def test_unlikely_targets_under_a_softcap(parts):
    """Rows that are computed again have the slope of the cap at their target: here 0.3 and 0.65, and at 0 it is 1."""
    inputs = identity_head([-60.0, 90.0, 50.0, 80.0], [-34.0, 50.0, 49.0, 0.0], softcap=50.0)
    c = coefficients(2, parts, seed=3)
    c = Coefficients(torch.tensor([1.0, -0.5]) * ("g" in parts), c.q, c.k)
    (got, grads), (want, wanted) = run(inputs, c), truth(inputs, c)
    assert (want.logprobs < -60).all()  # the first anchor, the target's logit, is out of reach
    assert_statistics(got, want, 8 * U * 50)
    # exp and log of distances of up to 40, and of the cap's logits of up to 50, each with a few u.
    error = 2e-6 + 4 * U * (40 + 50)
    for a, b in zip(grads[:2], wanted[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # rows that are computed again
def test_a_target_that_is_switched_off_gives_minus_infinity():
    """Its bias is -inf or huge; the gradient is that of the float64 reference, and no NaN appears."""
    inputs = head(n=4, bias=True)
    bias = inputs.bias.clone()
    targets = torch.arange(4)
    bias[:4] = torch.tensor([-float("inf"), -1e10, -1e9, -1e4])
    bias[140:] = -float("inf")
    inputs = HeadInputs(inputs.hidden, inputs.weight, targets, bias)
    c = Coefficients(torch.ones(4), torch.full((4,), 0.1))
    got, grads = run(inputs, c)
    want, _ = truth(inputs)
    torch.testing.assert_close(got.logprobs, want.logprobs.float(), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(got.entropy, want.entropy.float(), rtol=1e-5, atol=1e-5)
    p = torch.softmax(inputs.hidden.double() @ inputs.weight.double().t() + bias.double(), 1)
    slopes = -p - 0.1 * p * (torch.where(p > 0, p.log(), 0.0) + got.entropy.double()[:, None])
    slopes[range(4), targets] += 1.0
    for a, b in zip(
        grads, (slopes @ inputs.weight.double(), slopes.t() @ inputs.hidden.double(), slopes.sum(0)), strict=True
    ):
        assert relative(a, b) <= 2e-5


@pytest.mark.parametrize(("parts", "dtype"), product(["k", "gk", "gqk"], DTYPES))
def test_the_coefficient_of_the_log_sum_exp(parts, dtype, small_chunks):
    """With and without g and q, in chunks of 64 tokens, with tokens where g equals k or is 0."""
    inputs = head(dtype=dtype, bias=parts == "gk", temperature=1.3)
    c = coefficients(70, parts)
    (got, grads), (want, wanted) = run(inputs, c), truth(inputs, c)
    assert_statistics(got, want, logit_error(inputs))
    for a, b in zip(grads, wanted, strict=True):
        assert (a is None) == (b is None)
        assert a is None or relative(a, b) <= (2e-5 if dtype == torch.float32 else 2 * BF16)


def test_tokens_without_any_coefficient_have_no_gradient():
    zeros = torch.zeros(70)
    for c in (Coefficients(zeros), Coefficients(zeros, None, zeros), Coefficients(zeros, zeros, zeros)):
        for options in ({}, {"softcap": 3.0}):
            assert not any(x.any() for x in run(head(**options), c)[1][:2])


MIXED = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float16),
    (torch.float16, torch.bfloat16),
]


@pytest.mark.parametrize(("hidden", "weight"), MIXED, ids=lambda x: str(x).removeprefix("torch."))
def test_hidden_and_weight_of_different_dtypes(hidden, weight):
    """Multiplied in float32: gradients have the last rounding to their own dtype and the three bytes of dW's sum."""
    inputs = head(dtype=hidden, weight_dtype=weight, bias=True)
    c = coefficients(70, "gqk")
    (got, grads), (want, wanted) = run(inputs, c), truth(inputs, c)
    assert_statistics(got, want, logit_error(inputs))
    rounding = {torch.float32: 0.0, torch.float16: 2.0**-12, torch.bfloat16: BF16}
    for a, b, dtype in zip(grads, wanted, (hidden, weight, torch.float32), strict=True):
        assert relative(a, b) <= 2e-5 + rounding[dtype] + (2.0**-16 if dtype.itemsize == 2 else 0)


@pytest.mark.parametrize("hidden", DTYPES)
def test_the_public_functions_take_mixed_dtypes(hidden, monkeypatch):
    monkeypatch.setattr(plan, "CHUNK_BYTES", 1)
    weight = torch.bfloat16 if hidden == torch.float32 else torch.float32
    inputs = head(dtype=hidden, weight_dtype=weight)
    leaves = [inputs.hidden.requires_grad_(), inputs.weight.requires_grad_()]
    results = []
    for backend in ("triton", "reference"):
        out = upge.fused_policy_loss(*leaves, inputs.targets, upge.SFT(), backend=backend)
        results.append((out.logprobs, torch.autograd.grad(out.loss, leaves)))
    (got, grads), (want, wanted) = results
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    for a, b, leaf in zip(grads, wanted, leaves, strict=True):
        assert a.dtype == b.dtype == leaf.dtype
        assert relative(a.double(), b.double()) <= (2e-5 if leaf.dtype == torch.float32 else 2 * BF16)


def test_top1_counts_ties_and_only_larger_logits_beat_the_target():
    inputs = identity_head(
        [2.0, 2.0, 1.0],  # a tie
        [2.0, torch.nextafter(torch.tensor(2.0), torch.tensor(3.0)).item(), 1.0],  # beaten by an ulp
        [2.0, 1.0, 1.0],
        [-50.0, 1.0, 1.0],  # with a second anchor
        [-50.0, -50.0, -60.0],
        [3e4, 3e4, 3e4],
        [-float("inf"), 0.0, 0.0],
    )
    hidden = inputs.hidden.clone()
    hidden[-1] = 0.0
    want = torch.tensor([True, False, True, False, True, True])
    assert torch.equal(run(HeadInputs(hidden[:6], inputs.weight, inputs.targets[:6]))[0].top1, want)
    capped = HeadInputs(hidden[:6], inputs.weight, inputs.targets[:6], softcap=50.0, temperature=0.5)
    assert torch.equal(run(capped)[0].top1, want)
    one_word = HeadInputs(hidden[:2], inputs.weight[:1], inputs.targets[:2])
    assert run(one_word)[0].top1.all()


def test_the_epilogue_in_parts_gives_the_same(monkeypatch):
    """The interpreter's tile has no parts. With them, E and each logit keep their bits, and only sums are reordered."""
    inputs = head(bias=True, softcap=2.0)
    c = coefficients(70, "gqk")
    whole, grads = run(inputs, c)
    choices = plan.choices

    def in_parts(*args):
        gemms = choices(*args)
        return {**gemms, "logits": tuple(replace(gemm, PARTS=2) for gemm in gemms["logits"])}

    monkeypatch.setattr(plan, "choices", in_parts)
    parts, again = run(inputs, c)
    torch.testing.assert_close(parts.logprobs, whole.logprobs, rtol=8 * U, atol=8 * U)
    assert torch.equal(parts.top1, whole.top1)
    for a, b in zip(again, grads, strict=True):
        assert relative(a, b) <= 8 * U
