"""Degenerate batches and extreme numbers, drawn by hypothesis: finite, and equal to the reference."""

from __future__ import annotations

import pytest
import torch
import upge
from hypothesis import given, settings
from hypothesis import strategies as st

OBJECTIVES = [
    upge.SFT(), upge.REINFORCE(), upge.PPO(dual_clip=3.0), upge.DAPO(), upge.CISPO(), upge.CISPO(drop=True),
    upge.GSPO(), upge.SRFT(), upge.LUFFY(), upge.DFT(), upge.SAPO(),
    upge.Objective.from_function(lambda l, b: -l * b.advantages),
]  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([0, 1, 2, 63, 64, 65]),
    v=st.sampled_from([1, 2, 3, 127, 128, 129]),
    d=st.sampled_from([1, 5, 16]),
    counted=st.sampled_from(["all", "none", "one", "some"]),
    objectives=st.lists(st.sampled_from(OBJECTIVES), min_size=1, max_size=3),
    regularised=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_batch_matches_the_reference(n, v, d, counted, objectives, regularised, seed):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g).requires_grad_()
    weight = torch.randn(v, d, generator=g).requires_grad_()
    masks = {
        "all": torch.ones(n),
        "none": torch.zeros(n),
        "one": torch.arange(n) == n // 2,
        "some": torch.rand(n, generator=g) < 0.5,
    }
    inputs = {
        "mask": masks[counted].bool(),
        "advantages": torch.randn(n, generator=g).round(),  # zeros among them
        "old_logprobs": -torch.rand(n, generator=g) * 4,
        "ref_logprobs": -torch.rand(n, generator=g) * 4,
        "sequence_ids": torch.randint(0, 3, (n,), generator=g),
        "objective_index": torch.randint(0, len(objectives), (n,), generator=g),
        "entropy_coef": 0.1 * regularised,
        "kl_coef": 0.1 * regularised,
    }
    targets = torch.randint(0, v, (n,), generator=g)
    results = []
    for backend in ("torch", "reference"):
        out = upge.fused_policy_loss(hidden, weight, targets, objectives, backend=backend, **inputs)
        results.append((*out, *torch.autograd.grad(out.loss, [hidden, weight])))
    for name, a, b in zip([*out._fields, "dh", "dW"], *results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}")
    if not inputs["mask"].any():
        assert not any(x.any() for x in results[0])


@pytest.mark.parametrize("softcap", [None, 400.0])
@pytest.mark.parametrize("entropy_coef", [None, 0.1])
def test_shares_too_small_for_float32(problem, backend, softcap, entropy_coef):
    """Logits far apart: exp(z - max) is 0 for many entries, targets among them, but log p is not."""
    p = problem(n=20, v=129, spread=25.0)
    coefficients = {} if entropy_coef is None else {"entropy_coef": entropy_coef}
    results = [p.loss(upge.SFT(), chosen, softcap=softcap, **coefficients) for chosen in (backend, "reference")]
    (got, gradients), (exact, exact_gradients) = results
    assert exact.logprobs.min() < -110
    torch.testing.assert_close(got.logprobs, exact.logprobs, rtol=1e-5, atol=1e-3)
    for a, b in zip(gradients, exact_gradients, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.name)
def test_ratio_overflow_stays_finite(objective, backend):
    """old_logprobs of -1e4: log r is cut at 20. Where the mask clips the token, its coefficient is exactly 0."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(8, 4, generator=g).requires_grad_(), torch.randn(9, 4, generator=g).requires_grad_()
    out = upge.fused_policy_loss(
        hidden, weight, torch.arange(8), objective, backend=backend,
        advantages=torch.ones(8), old_logprobs=torch.full((8,), -1e4), sequence_ids=torch.arange(8) // 3,
        ref_logprobs=torch.full((8,), -1e4), kl_coef=0.1,
    )  # fmt: skip
    grads = torch.autograd.grad(out.loss, [hidden, weight])
    for value in (*out, *grads):
        assert torch.isfinite(value).all()
    if objective.reads_old_logprobs and objective.name != "SAPO":
        assert not out.stable.any()
        torch.testing.assert_close(out.ratio, torch.full((8,), 20.0).exp())
        kl_only = torch.full((8,), 0.1 / 8)  # d = -1e4, far below the cut
        if objective.name != "CISPO" or objective.mask.drop:
            torch.testing.assert_close(out.coefficient, kl_only)
    if objective.name == "SAPO":
        torch.testing.assert_close(out.coefficient, torch.full((8,), 0.1 / 8))


def test_gradients_of_an_empty_batch_are_zeros(backend):
    hidden, weight, bias = (
        torch.zeros(0, 4, requires_grad=True),
        torch.ones(7, 4, requires_grad=True),
        torch.ones(7, requires_grad=True),
    )
    for mask in (None, torch.zeros(0, dtype=torch.bool)):
        out = upge.fused_policy_loss(
            hidden, weight, torch.zeros(0, dtype=torch.long), upge.SFT(), bias=bias, mask=mask, backend=backend
        )
        assert out.loss.item() == 0.0
        grads = torch.autograd.grad(out.loss, [hidden, weight, bias])
        assert [g.shape for g in grads] == [hidden.shape, weight.shape, bias.shape]
        assert not any(g.any() for g in grads)
    out = upge.linear_logprobs(hidden, weight, torch.zeros(0, dtype=torch.long), backend=backend, entropy=True)
    assert out.logprobs.shape == out.entropy.shape == (0,)
    assert torch.autograd.grad(out.logprobs.sum(), weight)[0].shape == weight.shape


@pytest.mark.parametrize("followers", [0, 1])
def test_a_function_that_no_token_follows_or_one(followers, backend):
    hidden, weight = torch.randn(1, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    objectives = [upge.SFT(), upge.Objective.from_function(lambda l, b: -3 * l)]
    index = torch.full((1,), followers)
    out = upge.fused_policy_loss(
        hidden, weight, torch.ones(1, dtype=torch.long), objectives, objective_index=index, backend=backend
    )
    assert out.loss.item() == pytest.approx((-3 if followers else -1) * out.logprobs.item())
    assert out.coefficient.item() == (-3 if followers else -1)
    assert torch.autograd.grad(out.loss, hidden)[0].any()


def test_one_word_vocabulary(backend):
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    out = upge.fused_policy_loss(
        hidden, weight, torch.zeros(3, dtype=torch.int32), upge.SFT(), entropy_coef=1.0, backend=backend
    )
    assert out.loss.item() == 0.0
    assert not out.entropy.any()
    assert not any(g.any() for g in torch.autograd.grad(out.loss, [hidden, weight]))
