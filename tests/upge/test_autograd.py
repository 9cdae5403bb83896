"""The loss inside training: upstream scale, accumulation, frozen inputs, autocast, tied embeddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import upge


def grpo(p, hidden, weight, backend, **changes):
    return upge.fused_policy_loss(
        hidden,
        weight,
        p.targets,
        upge.GRPO(),
        bias=p.bias,
        backend=backend,
        **p.inputs | {"entropy_coef": 0.1} | changes,
    ).loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_upstream_scale_and_kept_graph(dtype, problem, backend):
    p = problem(n=60, dtype=dtype)
    loss = grpo(p, p.hidden, p.weight, backend)
    once = torch.autograd.grad(loss, p.leaves, retain_graph=True)
    twice = torch.autograd.grad(loss, p.leaves, grad_outputs=torch.tensor(-3.0), retain_graph=True)
    last = torch.autograd.grad(2 * loss, p.leaves)
    # Each gradient is rounded once, after it was scaled in float32; fp16's spacing below 6e-5 is 6e-8.
    bounds = {"rtol": 2 * torch.finfo(dtype).eps + 1e-6, "atol": 4 * 6e-8 if dtype == torch.float16 else 0.0}
    for a, b, c in zip(once, twice, last, strict=True):
        torch.testing.assert_close(b, -3 * a, **bounds)
        torch.testing.assert_close(c, 2 * a, **bounds)
    with pytest.raises(RuntimeError, match="retain_graph"):
        loss.backward()


def test_fp16_with_a_loss_scale(problem, backend):
    """Gradients too small for fp16 survive a loss scale: it multiplies them in fp32, before they are rounded."""
    p = problem(dtype=torch.float16, n=60)
    small = {"weights": torch.full((60,), 1e-7)}
    scaled = grpo(p, p.hidden, p.weight, backend, **small) * 2.0**16
    want = grpo(p, p.hidden, p.weight, "reference", **small) * 2.0**16
    for a, b in zip(torch.autograd.grad(scaled, p.leaves), torch.autograd.grad(want, p.leaves), strict=True):
        assert a.dtype == torch.float16
        # One rounding to fp16, whose spacing below 6e-5 is 6e-8.
        assert ((a.double() - b.double()).abs() <= 2e-3 * b.double().abs() + 6e-8).all()


def test_frozen_inputs_and_no_grad(problem, backend):
    p = problem(n=60)
    full = torch.autograd.grad(grpo(p, p.hidden, p.weight, backend), p.leaves)
    for frozen in range(3):
        leaves = [x.detach() if i == frozen else x for i, x in enumerate(p.leaves)]
        out = upge.fused_policy_loss(
            leaves[0], leaves[1], p.targets, upge.GRPO(), bias=leaves[2], backend=backend, entropy_coef=0.1, **p.inputs
        )
        live = [i for i in range(3) if i != frozen]
        for i, g in zip(live, torch.autograd.grad(out.loss, [leaves[i] for i in live]), strict=True):
            assert torch.equal(g, full[i])
    with torch.no_grad():
        quiet = grpo(p, p.hidden, p.weight, backend)
    assert not quiet.requires_grad
    assert torch.equal(quiet, grpo(p, p.hidden, p.weight, backend).detach())
    with torch.inference_mode():
        assert torch.equal(quiet, grpo(p, p.hidden, p.weight, backend))


def test_accumulation_over_micro_batches(problem, backend):
    """Weights are global, so the gradients of the micro-batches add up to the gradient of the batch."""
    p = problem()
    _, whole = p.loss(upge.GRPO(), backend, entropy_coef=0.1)
    whole = [g.clone() for g in whole]
    for leaf in p.leaves:
        leaf.grad = None
    for rows in torch.arange(150).split(40):
        inputs = {k: v[rows] for k, v in p.inputs.items()}
        upge.fused_policy_loss(
            p.hidden[rows],
            p.weight,
            p.targets[rows],
            upge.GRPO(),
            bias=p.bias,
            backend=backend,
            entropy_coef=0.1,
            **inputs,
        ).loss.backward()
    for leaf, want in zip(p.leaves, whole, strict=True):
        assert (leaf.grad - want).norm() <= 1e-6 * want.norm()


def test_tied_embedding(problem, backend):
    """The head's weight is also the embedding: its gradient is the sum of both paths."""
    p = problem()
    ids = torch.randint(0, 301, (150,), generator=torch.Generator().manual_seed(2))
    grads = []
    for name in (backend, "reference"):
        weight = p.weight.detach().clone().requires_grad_()
        grpo(p, torch.tanh(F.embedding(ids, weight)), weight, name).backward()
        grads.append(weight.grad)
    assert (grads[0] - grads[1]).norm() <= 2e-5 * grads[1].norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_linear_would(problem, backend, dtype):
    """fp32 master weights under autocast: the same numbers as with cast inputs, and gradients in fp32."""
    p = problem(n=40)
    with torch.autocast("cpu", dtype=dtype):
        loss = grpo(p, p.hidden, p.weight, backend)
        logprobs = upge.linear_logprobs(p.hidden, p.weight, p.targets, bias=p.bias, backend=backend).logprobs
    grads = torch.autograd.grad(loss, p.leaves)
    cast = [p.hidden.detach().to(dtype).requires_grad_(), p.weight.detach().to(dtype).requires_grad_()]
    want = grpo(p, *cast, backend)
    assert torch.equal(loss, want)
    assert loss.dtype == logprobs.dtype == torch.float32
    assert torch.equal(logprobs, upge.linear_logprobs(*cast, p.targets, bias=p.bias, backend=backend).logprobs)
    for a, b in zip(grads, torch.autograd.grad(want, [*cast, p.bias]), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())


def test_double_backward_is_refused(problem, backend):
    p = problem(n=5)
    for loss in (
        grpo(p, p.hidden, p.weight, backend),
        upge.linear_logprobs(p.hidden, p.weight, p.targets, backend=backend).logprobs.sum(),
    ):
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(loss, p.hidden, create_graph=True)
