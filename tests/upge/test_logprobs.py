"""linear_logprobs: values, gradients and precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import upge


def heads(problem, dtype=torch.float32, **sizes):
    p = problem(dtype=dtype, **sizes)
    return p, {"bias": p.bias, "entropy": True}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6}, {"softcap": 3.0, "temperature": 1.7}])
def test_values_and_gradients_for_any_upstream(problem, backend, small_chunks, options):
    p, kwargs = heads(problem)
    g = torch.Generator().manual_seed(5)
    up_l, up_h = torch.randn(150, generator=g), torch.randn(150, generator=g)
    up_l[::3], up_h[::3] = 0.0, 0.0  # tokens whose gradient is not needed
    results = []
    for name in (backend, "reference"):
        out = upge.linear_logprobs(p.hidden, p.weight, p.targets, backend=name, **kwargs, **options)
        loss = (out.logprobs * up_l + out.entropy * up_h).sum()
        results.append((out, torch.autograd.grad(loss, p.leaves, retain_graph=True)))
        # Through one output only.
        results[-1] += (torch.autograd.grad(out.entropy @ up_h, p.leaves, retain_graph=True),)
        results[-1] += (torch.autograd.grad(out.logprobs @ up_l, p.leaves),)
    (out, *grads), (ref, *ref_grads) = results
    bound = 2 * p.logit_error() / options.get("temperature", 1.0) + 1e-6
    assert (out.logprobs - ref.logprobs).abs().max() <= bound
    assert (out.entropy - ref.entropy).abs().max() <= 10 * bound
    for got, want in zip(grads, ref_grads, strict=True):
        for a, b in zip(got, want, strict=True):
            assert (a - b).norm() <= 2e-5 * b.norm()


def test_per_token_temperature(problem, backend):
    p, kwargs = heads(problem, n=40)
    t = torch.rand(40, generator=torch.Generator().manual_seed(0)) + 0.3
    out = upge.linear_logprobs(p.hidden, p.weight, p.targets, backend=backend, temperature=t, **kwargs)
    for i in (0, 17, 39):
        one = upge.linear_logprobs(
            p.hidden[i : i + 1], p.weight, p.targets[i : i + 1], backend=backend, temperature=float(t[i]), **kwargs
        )
        assert torch.equal(one.logprobs[0], out.logprobs[i])
        assert torch.equal(one.entropy[0], out.entropy[i])


def test_softcap_is_gemmas(problem, backend):
    """The cap is on raw logits, the temperature on capped ones, as Gemma 2 samples."""
    p, kwargs = heads(problem, n=20)
    z = 3.0 * torch.tanh(F.linear(p.hidden, p.weight, p.bias) / 3.0) / 0.5
    want = torch.log_softmax(z, -1).gather(1, p.targets[:, None]).squeeze(1)
    got = upge.linear_logprobs(p.hidden, p.weight, p.targets, backend=backend, softcap=3.0, temperature=0.5, **kwargs)
    torch.testing.assert_close(got.logprobs, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "logprob", "gradient"),
    [(torch.float32, 2e-5, 2e-5), (torch.bfloat16, 1e-4, 1e-2), (torch.float16, 1e-4, 1e-2)],
)
def test_precision_beside_plain_pytorch(problem, backend, dtype, logprob, gradient):
    """Within the project's bounds of float64 on the same inputs, and never worse than logits in the model's dtype."""
    p, _ = heads(problem, dtype=dtype, n=70, d=64, v=1000)
    bias = p.bias.detach()

    def run(compute):
        l = compute()
        grads = torch.autograd.grad(-(l.float() * p.inputs["advantages"]).sum() / 70, [p.hidden, p.weight])
        return l.detach().double(), [g.double() for g in grads]

    ours = lambda name: lambda: upge.linear_logprobs(p.hidden, p.weight, p.targets, bias=bias, backend=name).logprobs
    plain = lambda: -F.cross_entropy(F.linear(p.hidden, p.weight, bias).float(), p.targets, reduction="none")
    wide = [x.detach().double().requires_grad_() for x in (p.hidden, p.weight)]
    z = F.linear(wide[0], wide[1], bias.double())
    l = -F.cross_entropy(z, p.targets, reduction="none")
    want = l.detach(), torch.autograd.grad(-(l * p.inputs["advantages"]).sum() / 70, wide)
    error = lambda got: (
        [float((got[0] - want[0]).abs().max())]
        + [float((a - b).norm() / b.norm()) for a, b in zip(got[1], want[1], strict=True)]
    )
    got, peer = error(run(ours(backend))), error(run(plain))
    assert got[0] <= logprob
    assert max(got[1:]) <= gradient
    # In fp32 both are within a few roundings of the truth, and either may be closer. Below fp32 ours must be closer.
    slack = 2.0 if dtype == torch.float32 else 1.0
    assert all(a <= slack * b for a, b in zip(got, peer, strict=True)), (got, peer)


def identity_head(*rows):
    """A head whose logits are given: the hidden states are the logits, the weight is the identity."""
    return torch.tensor(rows, requires_grad=True), torch.eye(len(rows[0]), requires_grad=True)


@pytest.mark.parametrize("margin", [5.0, 15.0, 30.0, 60.0])
def test_confident_tokens_keep_relative_accuracy(margin, backend):
    """l = -log1p(3 e^-m) and 1 - p = 3 e^-m / (1 + 3 e^-m): subtracting probabilities would give 0 from m = 17 on."""
    hidden, weight = identity_head([margin, 0.0, 0.0, 0.0])
    out = upge.linear_logprobs(hidden, weight, torch.tensor([0]), entropy=True, backend=backend)
    s = 3 * math.exp(-margin)
    assert out.logprobs.item() == pytest.approx(-math.log1p(s), rel=1e-5)
    assert out.entropy.item() == pytest.approx(math.log1p(s) + margin * s / (1 + s), rel=1e-5)
    (grad,) = torch.autograd.grad(out.logprobs.sum(), hidden)
    assert grad[0, 0].item() == pytest.approx(s / (1 + s), rel=1e-5)
    assert grad[0, 1].item() == pytest.approx(-s / 3 / (1 + s), rel=1e-5)


@pytest.mark.parametrize("nll", [20.0, 39.0, 41.0, 79.0, 81.0, 90.0, 300.0, 2e4])
def test_unlikely_targets(nll, backend):
    hidden, weight = identity_head([nll - 100, -100.0, -130.0])
    out = upge.linear_logprobs(hidden, weight, torch.tensor([1]), entropy=True, backend=backend)
    assert out.logprobs.item() == pytest.approx(-nll, rel=1e-6)
    assert out.entropy.item() == pytest.approx(nll * math.exp(-nll) if nll < 50 else 0.0, rel=1e-3, abs=1e-5)
    (grad,) = torch.autograd.grad(out.logprobs.sum(), hidden)
    torch.testing.assert_close(grad, torch.tensor([[-1.0, 1.0, 0.0]]), rtol=1e-5, atol=1e-7)


def test_logits_near_a_hundred(backend):
    """Logits within a few units of +-100: the only error is their own rounding, u * 100."""
    for centre in (100.0, -100.0):
        row = [centre + x for x in (0.0, 1.5, -2.25, 3.0, 0.5)]
        hidden, weight = identity_head(row)
        out = upge.linear_logprobs(hidden, weight, torch.tensor([1]), backend=backend)
        want = torch.log_softmax(torch.tensor(row, dtype=torch.float64), 0)[1]
        assert out.logprobs.item() == pytest.approx(want.item(), abs=1e-5)


@pytest.mark.parametrize(("n", "d", "v"), [(5, 576, 49152), (3, 128, 152064)])
def test_real_vocabularies(problem, n, d, v):
    p, kwargs = heads(problem, n=n, d=d, v=v, spread=0.1)
    out = upge.linear_logprobs(p.hidden, p.weight, p.targets, **kwargs)
    ref = upge.linear_logprobs(p.hidden, p.weight, p.targets, backend="reference", **kwargs)
    torch.testing.assert_close(out.logprobs, ref.logprobs, rtol=0, atol=2e-5)
    torch.testing.assert_close(out.entropy, ref.entropy, rtol=0, atol=5e-5)
    got, want = (torch.autograd.grad(x.logprobs.sum() + x.entropy.sum(), p.leaves) for x in (out, ref))
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 2e-5 * b.norm()


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_entries_switched_off_by_their_bias(problem, backend):
    """A bias of -inf (padding of the vocabulary) is the same as leaving those entries out."""
    p = problem(n=9, v=301)
    p.targets %= 290
    kept = [p.hidden, p.weight[:290], p.bias[:290]]
    switched_off = p.bias.detach().clone()
    switched_off[290:] = -float("inf")

    def run(hidden, weight, bias):
        out = upge.fused_policy_loss(
            hidden, weight, p.targets, upge.SFT(), bias=bias, entropy_coef=0.1, backend=backend
        )
        return out, *torch.autograd.grad(out.loss, [p.hidden, p.weight])

    out, *grads = run(p.hidden, p.weight, switched_off)
    want, *wanted = run(*kept)
    torch.testing.assert_close(out.entropy, want.entropy, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.loss, want.loss)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
