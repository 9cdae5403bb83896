"""The options of a call, against formulas written out in float64 and on every backend."""

from __future__ import annotations

import math

import pytest
import torch
import upge
from upge.importance import ImportanceRatio
from upge.token_loss import Coefficients


def test_shapes_follow_the_targets(problem, any_backend):
    p = problem(n=24)
    flat, grads = p.loss(upge.GRPO(), any_backend, temperature=torch.linspace(0.5, 2, 24))
    for shape in ((2, 12), (2, 3, 4), (24,)):
        inputs = {k: None if v is None else v.view(shape) for k, v in p.inputs.items()}
        out = upge.fused_policy_loss(
            p.hidden.view(*shape, -1), p.weight, p.targets.view(shape), upge.GRPO(), bias=p.bias, backend=any_backend,
            temperature=torch.linspace(0.5, 2, 24).view(shape), **inputs,
        )  # fmt: skip
        assert all(x.shape == shape for x in out[1:])
        assert all(torch.equal(a.flatten(), b) for a, b in zip(out[1:], flat[1:], strict=True))
        p.assert_gradients(torch.autograd.grad(out.loss, p.leaves), grads)
        values = upge.linear_logprobs(
            p.hidden.view(*shape, -1), p.weight, p.targets.view(shape), bias=p.bias, entropy=True, lse=True, top1=True,
            backend=any_backend,
        )  # fmt: skip
        assert all(x.shape == shape for x in values)
    one = upge.fused_policy_loss(p.hidden[0], p.weight, p.targets[0], upge.SFT(), bias=p.bias, backend=any_backend)
    assert one.logprobs.shape == ()


def test_ignored_targets_are_masked_tokens(problem, any_backend):
    p = problem(n=40)
    want, want_grads = p.loss(upge.GRPO(), any_backend)
    p.inputs["mask"], dropped = None, ~p.inputs["mask"]
    for ignore in (-100, -1, 7):
        targets = p.targets.masked_fill(dropped, ignore)
        kept = dropped | (p.targets != ignore)
        assert kept.all() or ignore == 7
        p.targets, saved = targets, p.targets
        if kept.all():
            out, grads = p.loss(upge.GRPO(), any_backend, ignore_index=ignore)
            assert all(torch.equal(a, b) for a, b in zip([*out, *grads], [*want, *want_grads], strict=True))
            values = upge.linear_logprobs(
                p.hidden, p.weight, targets, bias=p.bias, ignore_index=ignore, entropy=True, backend=any_backend
            )
            assert not values.logprobs[dropped].any()
            assert (values.entropy[~dropped] > 0).all()
            assert not torch.autograd.grad(values.logprobs.sum(), p.hidden)[0][dropped].any()
        p.targets = saved


def test_masked_rows_of_linear_logprobs_are_never_read(problem, any_backend):
    p = problem(n=40)
    mask = p.inputs["mask"]
    hidden = p.hidden.detach().masked_fill(~mask[:, None], float("nan")).requires_grad_()
    call = lambda h, m: upge.linear_logprobs(
        h, p.weight, p.targets, mask=m, bias=p.bias, entropy=True, lse=True, top1=True, backend=any_backend
    )
    out, want = call(hidden, mask.long()), call(p.hidden, None)
    for a, b in zip(out, want, strict=True):
        assert torch.equal(a, torch.where(mask, b, torch.zeros_like(b)))
    loss = lambda o: (o.logprobs + o.entropy + o.lse)[mask].sum()
    got = torch.autograd.grad(loss(out), [hidden, p.weight, p.bias])
    p.assert_gradients(got, torch.autograd.grad(loss(want), p.leaves))


@pytest.mark.parametrize("kind", ["k1", "k2", "abs", "k3", "k3_ratio"])
@pytest.mark.parametrize("objective", [upge.GRPO(), upge.GSPO(0.03, 0.04), upge.SFT()], ids=lambda o: o.name)
def test_kl_kinds(kind, objective, problem, any_backend):
    p = problem(n=40)
    x, m = p.inputs, p.inputs["mask"]
    l, _, _ = p.in_float64()
    l = l[m]
    d = x["ref_logprobs"][m].double() - l
    log_r, ids = l - x["old_logprobs"][m].double(), x["sequence_ids"][m]
    if objective.name == "GSPO":
        log_r = torch.stack([log_r[ids == i].mean() for i in ids])
    k3 = d.exp() - d - 1
    term = {"k1": -d, "k2": d**2 / 2, "abs": d.abs(), "k3": k3, "k3_ratio": k3 * log_r.exp()}[kind]
    coefficient = torch.rand(40).masked_fill(torch.arange(40) % 3 == 0, 0.0)
    x["ref_logprobs"] = x["ref_logprobs"].masked_fill(coefficient == 0, float("nan"))  # not read there
    want = (x["weights"][m] * torch.where(coefficient[m] == 0, 0.0, coefficient[m] * term)).sum()
    zero = torch.zeros(40)
    index = {"weights": x["weights"]}
    if objective.advantage == "given":
        index["advantages"] = zero
    else:
        want = want - (x["weights"][m] * l).sum()
    p.check(any_backend, objective, want, kl=kind, kl_coef=coefficient, rollout_logprobs=None, **index)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["clip", "mask"])
@pytest.mark.parametrize("low", [None, 0.8])
def test_truncated_importance_ratios(level, mode, low, problem, any_backend):
    """The policy's term alone is multiplied."""
    p = problem(n=40)
    x, m = p.inputs, p.inputs["mask"]
    l, entropy, lse = (v[m] for v in p.in_float64())
    log_ratio, ids = (x["old_logprobs"] - x["rollout_logprobs"])[m].double(), x["sequence_ids"][m]
    if level == "sequence":
        log_ratio = torch.stack([log_ratio[ids == i].sum() for i in ids])
    ratio = log_ratio.exp()
    inside = (ratio <= 1.2) & (ratio >= (low or 0))
    assert 0 < inside.sum() < len(ids)
    tis = ratio.clamp(low or 0, 1.2) if mode == "clip" else ratio * inside
    regularisers = -0.1 * entropy + 0.01 * lse**2
    want = (x["weights"][m] * (-tis * x["advantages"][m] * l + regularisers)).sum()
    settings = {"tis": level, "tis_mode": mode, "tis_clip": 1.2, "tis_min": low, "entropy_coef": 0.1, "lse_coef": 0.01}
    p.check(any_backend, upge.REINFORCE(), want, **settings)
    out, _ = p.loss(upge.REINFORCE(), any_backend, **settings | {"entropy_coef": 0, "lse_coef": 0})
    skipped = m.nonzero().squeeze(1)[~inside] if mode == "mask" else []
    assert not out.evaluated[skipped].any()


def test_a_token_with_any_coefficient_has_a_gradient():
    zeros = torch.zeros(4)
    g, q, k = (zeros.index_fill(0, torch.tensor([place]), 1.0) for place in (0, 1, 2))
    assert Coefficients(g).nonzero().tolist() == [0]
    assert Coefficients(g, q).nonzero().tolist() == [0, 1]
    assert Coefficients(g, None, k).nonzero().tolist() == [0, 2]
    assert Coefficients(zeros, q, k).nonzero().tolist() == [1, 2]


def test_coefficients_per_token(problem, any_backend):
    p = problem(n=40)
    x, m = p.inputs, p.inputs["mask"]
    l, entropy, lse = (v[m] for v in p.in_float64())
    coefficients = {name: torch.rand(40, dtype=torch.float64) for name in ("entropy_coef", "lse_coef")}
    terms = -coefficients["entropy_coef"][m] * entropy + coefficients["lse_coef"][m] * lse**2
    want = (x["weights"][m] * (-x["advantages"][m] * l + terms)).sum()
    p.check(any_backend, upge.REINFORCE(), want, rollout_logprobs=None, **coefficients)
    some = torch.arange(40) % 2 == 0
    out, _ = p.loss(upge.REINFORCE(), any_backend, advantages=torch.zeros(40), entropy_coef=some.float())
    assert torch.equal(out.evaluated, some & m)


def test_on_policy_without_old_logprobs(problem, any_backend):
    """r = 1, with PPO's exact value and gradient: that of the call with its own log-probabilities."""
    p = problem(n=40)
    p.inputs["rollout_logprobs"] = None
    now = upge.linear_logprobs(p.hidden, p.weight, p.targets, bias=p.bias, backend=any_backend).logprobs.detach()
    for objective in (upge.GRPO(), upge.CISPO(), upge.SAPO(), upge.GSPO(0.03, 0.04)):
        want, want_grads = p.loss(objective, any_backend, old_logprobs=now, kl="k3_ratio", kl_coef=0.1)
        out, grads = p.loss(objective, any_backend, old_logprobs=None, kl="k3_ratio", kl_coef=0.1)
        assert (out.ratio[p.inputs["mask"]] == 1).all()
        torch.testing.assert_close(out.loss, want.loss, rtol=2e-5, atol=1e-7)  # old is rounded to float32
        p.assert_gradients(grads, want_grads)


def test_evaluate_all(problem, any_backend):
    """The numbers of tokens without a gradient too, and the same loss and gradients."""
    p = problem(n=40)
    p.inputs["advantages"] = p.inputs["advantages"] * (torch.arange(40) % 2)
    m = p.inputs["mask"]
    for objective in (upge.GRPO(), upge.GSPO(0.03, 0.04)):
        want, want_grads = p.loss(objective, any_backend)
        out, grads = p.loss(objective, any_backend, evaluate="all")
        assert torch.equal(out.evaluated, m)
        assert torch.isfinite(out.logprobs).all()
        full = upge.linear_logprobs(
            p.hidden, p.weight, p.targets, bias=p.bias, entropy=True, top1=True, backend=any_backend
        )
        assert torch.equal(out.logprobs[m], full.logprobs[m])
        assert torch.equal(out.entropy[m], full.entropy[m])
        assert torch.equal(out.top1[m], full.top1[m])
        assert torch.equal(out.loss, want.loss)
        assert torch.equal(out.coefficient.abs(), want.coefficient.abs())
        assert all(torch.equal(a, b) for a, b in zip(grads, want_grads, strict=True))
        assert torch.equal(out.logprobs[want.evaluated], want.logprobs[want.evaluated])


def test_max_log_ratio(problem, any_backend):
    """log r is cut on both sides, and where it is, the gradient through r is 0 and the token not stable."""
    p = problem(n=40)
    x, m = p.inputs, p.inputs["mask"]
    x["rollout_logprobs"] = None
    l = p.in_float64()[0][m]
    log_r = l - x["old_logprobs"][m].double()
    cut = log_r.detach().abs() > 0.2
    assert 0 < cut.sum() < len(cut)
    unclipped = upge.Objective(reference="rollout", likelihood="ratio")
    want = (x["weights"][m] * -log_r.clamp(-0.2, 0.2).exp() * x["advantages"][m]).sum()
    out = p.check(any_backend, unclipped, want, max_log_ratio=0.2)
    assert torch.equal(out.stable[m], ~cut)
    assert not out.coefficient[m][cut].any()
    assert out.ratio[m].max() <= torch.tensor(0.2).exp() * (1 + 1e-6)
    gap = (x["ref_logprobs"][m].double() - l).clamp(max=0.2)
    want = (x["weights"][m] * (gap.exp() - gap - 1)).sum()
    p.check(any_backend, upge.REINFORCE(), want, advantages=torch.zeros(40), kl_coef=1.0, max_log_ratio=0.2)


def test_the_kl_is_cut_from_above_alone(problem, any_backend):
    """Policies that moved far from the reference model: e^d would overflow, and a cut d has no gradient."""
    p = problem(n=40)
    now = upge.linear_logprobs(p.hidden, p.weight, p.targets, bias=p.bias, backend=any_backend).logprobs.detach()
    for d, value, slope in ((500.0, math.expm1(20) - 20, 0.0), (-500.0, 499.0, 1.0)):
        options = {"kl_coef": 1.0, "ref_logprobs": now + d, "mask": None, "rollout_logprobs": None}
        out, _ = p.loss(upge.REINFORCE(), any_backend, **options | {"advantages": torch.zeros(40)})
        torch.testing.assert_close(out.token_loss, p.inputs["weights"] * value, rtol=1e-5, atol=0)
        torch.testing.assert_close(out.coefficient, p.inputs["weights"] * slope, rtol=1e-5, atol=0)


def test_a_small_kl_keeps_its_digits(problem, backend):
    """e^d - 1 - d of d = 1e-4 is 5e-9. Subtracted in float32 it would have three right digits, or a wrong sign."""
    p = problem(n=40)
    p.inputs |= {"mask": None, "rollout_logprobs": None, "old_logprobs": None, "advantages": torch.zeros(40)}
    now = p.loss(upge.SFT(), backend)[0].logprobs
    reference = now + torch.logspace(-5, -1, 40)
    d = reference.double() - now.double()  # exact in float32, too, as numbers within a factor of 2
    w, value = p.inputs["weights"].double(), torch.expm1(d) - d
    for kind, slope in (("k3", torch.expm1(d)), ("k3_ratio", torch.expm1(d) - value)):
        out, _ = p.loss(upge.REINFORCE(), backend, kl=kind, kl_coef=1.0, ref_logprobs=reference)
        bound = 8 * torch.finfo(torch.float32).eps * w
        assert ((out.token_loss - w * value).abs() <= bound * value).all()
        assert ((out.coefficient + w * slope).abs() <= bound * slope).all()


def test_a_sequence_with_dead_tokens_counts_whole(problem, any_backend):
    """A token without weight or advantage has no term of its own, but its ratio is in the mean of its sequence."""
    p = problem(n=40)
    ids, place = torch.arange(40) // 5, torch.arange(40) % 5
    x = p.inputs
    x |= {"sequence_ids": ids, "mask": None, "rollout_logprobs": None}
    x["advantages"] = x["advantages"].masked_fill((place == 0) | (ids == 7), 0.0)
    x["weights"] = x["weights"].masked_fill((place == 1) | (ids == 6), 0.0)
    log_r = p.in_float64()[0] - x["old_logprobs"].double()
    s = torch.stack([log_r[ids == i].mean() for i in ids]).exp()
    want = (x["weights"] * -torch.min(s * x["advantages"], s.clamp(0.9, 1.1) * x["advantages"])).sum()
    out = p.check(any_backend, upge.GSPO(0.1, 0.1), want)
    assert torch.equal(out.evaluated, ids < 6)


def test_cispo_bounds(problem, any_backend):
    p = problem(n=40)
    p.inputs["rollout_logprobs"] = None
    x, m = p.inputs, p.inputs["mask"]
    l = p.in_float64()[0][m]
    r, a = (l - x["old_logprobs"][m].double()).exp().detach(), x["advantages"][m]
    for objective, weight in (
        (upge.CISPO(max_ratio=0.9), r.clamp(max=0.9)),
        (upge.CISPO(0.2, clip_low=0.1), r.clamp(0.9, 1.2)),
        (upge.Objective(upge.WeightClip(0.2, low=1.0), "rollout"), r.clamp(max=1.2)),
        (upge.CISPO(drop=True, clip_low=0.1), r * ~(((a > 0) & (r > 1.2)) | ((a < 0) & (r < 0.9)))),
    ):
        p.check(any_backend, objective, (x["weights"][m] * -weight * a * l).sum())


def test_log_probabilities_that_the_kl_does_not_read_may_be_nan(problem, any_backend):
    """SFT tokens without a KL term, in a batch whose rollouts have k3_ratio."""
    p = problem(n=40)
    is_sft = torch.arange(40) % 2 == 0
    p.inputs |= {"rollout_logprobs": None, "objective_index": (~is_sft).long()}
    options = {"kl": "k3_ratio", "kl_coef": torch.where(is_sft, 0.0, 0.1)}
    want, grads = p.loss([upge.SFT(), upge.GRPO()], any_backend, **options)
    unread = {name: p.inputs[name].masked_fill(is_sft, float("nan")) for name in ("old_logprobs", "ref_logprobs")}
    out, got = p.loss([upge.SFT(), upge.GRPO()], any_backend, **options, **unread)
    assert all(torch.equal(a, b) for a, b in zip([*out, *got], [*want, *grads], strict=True))


def test_a_log_ratio_at_the_cut_is_not_cut(any_backend):
    hidden, weight, y = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
    old = upge.linear_logprobs(hidden, weight, y).logprobs.detach() - 2
    out = upge.fused_policy_loss(
        hidden, weight, y, upge.PPO(clip_high=9.0), advantages=torch.ones(1), old_logprobs=old, max_log_ratio=2.0,
        backend=any_backend,
    )  # fmt: skip
    torch.testing.assert_close(out.ratio, torch.full((1,), 2.0).exp())
    torch.testing.assert_close(out.coefficient, -torch.full((1,), 2.0).exp())
    assert out.stable.all()


def test_a_dual_clip_is_above_the_ratio_and_for_negative_advantages_alone(any_backend):
    hidden, weight, y = torch.zeros(3, 2, requires_grad=True), torch.zeros(2, 2), torch.zeros(3, dtype=torch.long)
    inputs = {"advantages": torch.tensor([-1.0, 0.0, -1.0]), "old_logprobs": torch.tensor([-2.0, -9.0, -9.0])}
    inputs |= {"weights": torch.ones(3), "evaluate": "all", "backend": any_backend}
    r = upge.fused_policy_loss(hidden, weight, y, upge.PPO(clip_high=9.0), **inputs).ratio[0].item()
    out = upge.fused_policy_loss(hidden, weight, y, upge.PPO(clip_high=9.0, dual_clip=r), **inputs)
    assert out.stable.tolist() == [True, True, False]
    assert out.coefficient.tolist() == pytest.approx([r, 0.0, 0.0])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_dropped_weight_clip_spares_advantages_of_0(advantage, any_backend):
    hidden, weight, y = torch.zeros(2, 2, requires_grad=True), torch.zeros(1, 2), torch.zeros(2, dtype=torch.long)
    inputs = {"advantages": torch.tensor([0.0, advantage]), "old_logprobs": torch.full((2,), -advantage)}
    objective = upge.CISPO(0.2, clip_low=0.2, drop=True)  # r = e^advantage is beyond both bounds
    out = upge.fused_policy_loss(hidden, weight, y, objective, **inputs, evaluate="all", backend=any_backend)
    assert out.stable.tolist() == [True, False]


def test_objectives_leave_out_tokens_each_by_its_own_rule(problem, any_backend):
    """An advantage of 0 is no reason under SFT, nor under GSPO, where others of the sequence have one."""
    p = problem(n=40)
    index, sequences = torch.arange(40) // 16, torch.arange(40) // 4
    given = torch.where((index == 0) | (torch.arange(40) % 4 == 0), 0.0, p.inputs["advantages"])
    options = {"objective_index": index, "sequence_ids": sequences, "advantages": given, "mask": None}
    options |= {"rollout_logprobs": None}
    out, _ = p.loss([upge.SFT(), upge.REINFORCE(), upge.GSPO(1.0, 99.0)], any_backend, **options)
    w, sft, rl, gspo = p.inputs["weights"], index == 0, index == 1, index == 2
    assert torch.equal(out.evaluated, sft | gspo | (given != 0))
    torch.testing.assert_close(out.coefficient[sft], -w[sft])
    torch.testing.assert_close(out.coefficient[rl], -(w * given)[rl])
    assert (out.coefficient[gspo] != 0).all()


def test_a_kl_at_the_cut_is_not_cut(any_backend):
    hidden, weight, y = torch.zeros(1, 2, requires_grad=True), torch.zeros(2, 2), torch.zeros(1, dtype=torch.long)
    now = upge.linear_logprobs(hidden, weight, y).logprobs.detach()
    reference = now + 2
    d = (reference - now).item()
    out = upge.fused_policy_loss(
        hidden, weight, y, upge.REINFORCE(), advantages=torch.zeros(1), kl_coef=1.0, ref_logprobs=reference,
        max_log_ratio=d, backend=any_backend,
    )  # fmt: skip
    torch.testing.assert_close(out.coefficient, torch.tensor([-math.expm1(d)]))


def test_importance_ratios_on_the_bounds_count_and_are_1_where_no_token_does():
    log_ratio, mask = torch.tensor([0.5, -0.5, 0.0, 3.0]), torch.tensor([True, True, True, False])
    ratio = log_ratio.exp()
    within = ImportanceRatio("token", "mask", high=ratio[0].item(), low=ratio[1].item())
    got = within.of(log_ratio, torch.zeros(4), None, mask)
    assert torch.equal(got, torch.tensor([ratio[0].item(), ratio[1].item(), 1.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_values_per_token_of_any_float_dtype(dtype, problem, any_backend):
    p = problem(n=24)
    narrow = {k: v.to(dtype) if v.is_floating_point() else v for k, v in p.inputs.items()}
    exact = {k: v.float() if v.is_floating_point() else v for k, v in narrow.items()}
    (out, grads), (want, want_grads) = (p.loss(upge.GRPO(), any_backend, **x) for x in (narrow, exact))
    assert all(x.dtype == torch.float32 for x in (out.loss, out.ratio, out.coefficient))
    assert all(torch.equal(a, b) for a, b in zip([*out, *grads], [*want, *want_grads], strict=True))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_logit_scale(softcap, problem, any_backend):
    p = problem(n=24)
    z = 0.3 * (p.hidden.double() @ p.weight.double().t() + p.bias.double())
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / 0.7
    want = -torch.log_softmax(z, -1).gather(1, p.targets[:, None]).mean()
    clear = {"mask": None, "weights": None, "rollout_logprobs": None}
    p.check(any_backend, upge.SFT(), want, logit_scale=0.3, softcap=softcap, temperature=0.7, **clear)


def test_lse_and_top1(problem, any_backend):
    p = problem(n=60)
    p.targets = (p.hidden @ p.weight.t() + p.bias).argmax(1).where(torch.arange(60) % 2 == 0, p.targets)
    l, _, lse = p.in_float64()
    out = upge.linear_logprobs(p.hidden, p.weight, p.targets, bias=p.bias, lse=True, top1=True, backend=any_backend)
    assert out.entropy is None
    torch.testing.assert_close(out.lse.double(), lse.detach(), rtol=1e-6, atol=2e-6)
    assert torch.equal(out.top1, (p.hidden @ p.weight.t() + p.bias).argmax(1) == p.targets)
    assert 0 < out.top1.sum() < 60
    g, k = torch.randn(60), torch.randn(60)
    k[:5] = g[:5]  # the non-target entries of these rows have no gradient
    got = torch.autograd.grad((out.logprobs * g + out.lse * k).sum(), p.leaves)
    p.assert_gradients(got, torch.autograd.grad((l * g + lse * k).sum(), p.leaves))
