"""The same call gives the same bits, a token does not depend on its batch, tokens without a gradient are skipped."""

from __future__ import annotations

import pytest
import torch
import upge
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = [torch.float32, torch.bfloat16]


def logprobs(p, rows, backend):
    out = upge.linear_logprobs(
        p.hidden.detach()[rows], p.weight.detach(), p.targets[rows], bias=p.bias.detach(),
        entropy=True, lse=True, top1=True, backend=backend,
    )  # fmt: skip
    return torch.stack([x.float() for x in out])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "v"), [(24, 301), (64, 600), (33, 77)])
def test_a_token_does_not_depend_on_its_batch(problem, backend, dtype, d, v, small_chunks):
    """Permuted or split into pieces: every log-probability and entropy keeps its bits."""
    p = problem(n=150, d=d, v=v, dtype=dtype)
    whole = logprobs(p, torch.arange(150), backend)
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(150, generator=g)
    assert torch.equal(logprobs(p, order, backend), whole[:, order])
    for size in (1, 2, 3, 7, 64, 149) if backend == "torch" else (1, 7, 149):
        pieces = [logprobs(p, rows, backend) for rows in order.split(size)[:3]]
        assert torch.equal(torch.cat(pieces, 1), whole[:, order[: 3 * size]]), size


def test_a_token_does_not_depend_on_its_batch_with_a_real_vocabulary(problem):
    p = problem(n=70, d=576, v=49152, spread=0.1)
    whole = logprobs(p, torch.arange(70), "torch")
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    assert torch.equal(logprobs(p, order, "torch"), whole[:, order])
    assert torch.equal(logprobs(p, torch.tensor([69]), "torch"), whole[:, 69:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_policy_ratio_is_exactly_one(problem, backend, dtype, small_chunks):
    """Log-probabilities computed under no_grad, in other batches of the same tokens, give exactly r = 1."""
    p = problem(dtype=dtype)
    with torch.no_grad():
        old = torch.cat([logprobs(p, rows, backend)[0] for rows in torch.arange(150).split(40)])
    out, _ = p.loss(upge.GRPO(), backend, old_logprobs=old, mask=None, rollout_logprobs=None, entropy_coef=0.01)
    assert torch.equal(out.ratio, torch.ones(150))
    assert torch.equal(out.logprobs, old)
    out, _ = p.loss(upge.GSPO(), backend, old_logprobs=old, mask=None, rollout_logprobs=None)
    assert torch.equal(out.ratio, torch.ones(150))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_twice(problem, backend, dtype, small_chunks):
    p = problem(dtype=dtype)
    objectives = [upge.GRPO(), upge.GSPO(), upge.SFT()]
    runs = []
    for _ in range(2):
        out, grads = p.loss(objectives, backend, objective_index=torch.arange(150) % 3, entropy_coef=0.1)
        runs.append([*out, *grads])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def dropped_cases():
    zero = lambda p, rows: {"advantages": p.inputs["advantages"].masked_fill(rows, 0.0)}
    mask = lambda p, rows: {"mask": ~rows}
    weight = lambda p, rows: {"weights": p.inputs["weights"].masked_fill(rows, 0.0)}
    return {"advantage": zero, "mask": mask, "weight": weight}


@pytest.mark.parametrize("case", ["advantage", "mask", "weight"])
def test_tokens_without_gradient_change_nothing(problem, backend, case, small_chunks):
    """Leaving them in the batch gives the same bits as taking them out."""
    p = problem()
    rows = torch.arange(150) % 2 == 0
    plain = {"mask": None, "rollout_logprobs": None}
    out, grads = p.loss(upge.GRPO(), backend, **plain | dropped_cases()[case](p, rows))
    short = problem()
    short.hidden = p.hidden.detach()[~rows].requires_grad_()
    short.targets = p.targets[~rows]
    short.inputs = {k: v[~rows] for k, v in p.inputs.items()}
    want, want_grads = short.loss(upge.GRPO(), backend, **plain)
    assert torch.equal(out.loss, want.loss)
    assert torch.equal(grads[0][~rows], want_grads[0])
    assert torch.equal(grads[1], want_grads[1])
    assert not grads[0][rows].any()
    assert torch.equal(out.evaluated, ~rows)
    assert not out.coefficient[rows].any()
    unknown = torch.zeros(75) if case == "mask" else torch.full((75,), float("nan"))
    for value in (out.logprobs, out.entropy, out.ratio):
        torch.testing.assert_close(value[rows], unknown, equal_nan=True)


class Flops(TorchDispatchMode):
    """Counts the multiplications and additions of every matrix product."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.total += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return func(*args, **(kwargs or {}))


def flops(call) -> int:
    with Flops() as counter:
        call()
    return counter.total


def test_work_is_six_nvd_and_proportional_to_the_tokens_with_a_gradient(problem):
    """Counted GEMM work of the torch backend, in NVD. Only the padding to 64 rows comes on top."""
    n, d, v = 640, 24, 301
    p = problem(n=n, d=d, v=v)
    nvd = n * d * v
    a = p.inputs["advantages"]
    free = {"mask": None, "rollout_logprobs": None}
    run = lambda objective=None, **c: p.loss(objective or upge.REINFORCE(), "torch", **free | c)
    assert flops(run) == 6 * nvd
    assert flops(lambda: run(advantages=a * (torch.arange(n) % 2))) == 3 * nvd
    assert flops(lambda: run(mask=torch.arange(n) < 128)) == 6 * nvd * 128 // n
    # With an entropy bonus every token has a gradient. A frozen weight saves 2 NVD, no_grad saves 4.
    assert flops(lambda: run(advantages=0 * a, entropy_coef=0.1)) == 6 * nvd
    p.weight.requires_grad_(False)
    assert flops(lambda: upge.fused_policy_loss(p.hidden, p.weight, p.targets, upge.SFT())) == 4 * nvd
    with torch.no_grad():
        assert flops(lambda: upge.fused_policy_loss(p.hidden, p.weight, p.targets, upge.SFT())) == 2 * nvd
        assert flops(lambda: upge.linear_logprobs(p.hidden, p.weight, p.targets)) == 2 * nvd
    p.weight.requires_grad_(True)
    # Clipped tokens are known only after the forward, so they save the backward's 4 NVD.
    old = upge.linear_logprobs(p.hidden, p.weight, p.targets, bias=p.bias).logprobs.detach()
    clipped = torch.arange(n) % 4 == 0
    jump = {"old_logprobs": old - clipped.float(), "advantages": torch.ones(n)}
    assert flops(lambda: run(upge.GRPO(), **jump)) == 2 * nvd + 4 * nvd * 3 // 4
    # Sequence-level ratios take a second pass over the logits.
    assert flops(lambda: run(upge.GSPO(1.0, 1e9))) == 8 * nvd


def test_masked_rows_may_hold_anything(problem, backend):
    p = problem()
    mask = p.inputs["mask"]
    want, want_grads = p.loss(upge.GRPO(), backend, entropy_coef=0.1, kl_coef=0.1)
    want_grads = [g.clone() for g in want_grads]
    with torch.no_grad():
        p.hidden[~mask] = float("nan")
    p.targets = p.targets.masked_fill(~mask, -100)
    dirty = {
        k: p.inputs[k].masked_fill(~mask, float("nan"))
        for k in ("advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs", "weights")
    }
    out, grads = p.loss(upge.GRPO(), backend, entropy_coef=0.1, kl_coef=0.1, **dirty)
    for a, b in zip([*out, *grads], [*want, *want_grads], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_the_default_dtype_changes_nothing(problem, backend):
    """Trainers set it while they build models."""
    p = problem(n=70, dtype=torch.bfloat16)
    objectives = [upge.SAPO(), upge.GSPO(), upge.Objective.from_function(lambda l, b: -l * b.advantages)]
    options = {"objective_index": torch.arange(70) % 3, "entropy_coef": 0.1, "kl_coef": 0.1, "temperature": 0.7}

    def run():
        out, grads = p.loss(objectives, backend, **options)
        everything = {"entropy": True, "lse": True, "top1": True}
        return [*out, *grads, *upge.linear_logprobs(p.hidden, p.weight, p.targets, backend=backend, **everything)]

    want = run()
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            got = run()
        finally:
            torch.set_default_dtype(torch.float32)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_the_loss_is_summed_in_double_precision():
    """Of three losses the first and the last cancel; in single precision their sum would round the middle one."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 4, generator=g), torch.randn(7, 4, generator=g)
    hidden[2] = hidden[0]
    targets, weights = torch.tensor([1, 2, 1]), torch.tensor([1e7, 1.0, -1e7])
    out = upge.fused_policy_loss(hidden, weight, targets, upge.SFT(), weights=weights)
    assert out.token_loss.sum() != out.token_loss[1]
    assert out.loss == out.token_loss[1]
