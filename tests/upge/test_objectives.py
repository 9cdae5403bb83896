"""Every objective against the float64 reference, and the reference against the papers' formulas, written out here."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import upge
from upge.backends import reference
from upge.inputs import HeadInputs, TokenInputs
from upge.token_loss import LossFormula

PRESETS = {
    "SFT": upge.SFT(),
    "REINFORCE": upge.REINFORCE(),
    "PPO": upge.PPO(),
    "PPO-dual": upge.PPO(dual_clip=1.1),
    "GRPO": upge.GRPO(),
    "DrGRPO": upge.DrGRPO(),
    "unclipped": upge.DrGRPO(None, None),
    "clipped-below": upge.PPO(clip_high=None),
    "DAPO": upge.DAPO(),
    "CISPO": upge.CISPO(),
    "CISPO-drop": upge.CISPO(drop=True),
    "GSPO": upge.GSPO(0.03, 0.04),
    "GSPO-dual": upge.Objective(upge.Clip(0.03, 0.04, dual=1.02), "sequence", likelihood="ratio"),
    "SRFT": upge.SRFT(),
    "LUFFY": upge.LUFFY(),
    "DFT": upge.DFT(),
    "SAPO": upge.SAPO(),
    "function": upge.Objective.from_function(lambda l, b: -(l - b.old_logprobs).exp() * b.advantages),
}


def relative(got, want):
    return float((got.double() - want.double()).norm() / want.double().norm())


def assert_same(got, want, problem, ratio_scale=1.0):
    """Outputs of a float32 backend against the reference's, within the rounding of its logits."""
    (out, grads), (ref, ref_grads) = got, want
    # l has the errors of two logits, plus a few u of log, exp and their sum. H <= log V weighs them by p (1 + |log p|).
    logprob = 2 * problem.logit_error() + 1e-6
    assert (out.logprobs - ref.logprobs).abs().max() <= logprob
    assert (out.entropy - ref.entropy).abs().max() <= 10 * logprob
    torch.testing.assert_close(out.ratio, ref.ratio, rtol=2 * logprob, atol=1e-9)
    # Between the jumps of the mask, g is w times a smooth function of r with a slope below 4.
    torch.testing.assert_close(out.coefficient, ref.coefficient, rtol=20 * logprob, atol=20 * logprob / len(ref.ratio))
    assert torch.equal(out.stable, ref.stable)
    assert torch.equal(out.evaluated, ref.evaluated)
    torch.testing.assert_close(out.loss, ref.loss, rtol=1e-5, atol=1e-6)
    for g, r in zip(grads, ref_grads, strict=True):
        assert relative(g, r) <= 2e-5


@pytest.mark.parametrize("name", PRESETS)
def test_preset_matches_reference(name, problem, backend, small_chunks):
    p = problem()
    assert_same(p.loss(PRESETS[name], backend), p.loss(PRESETS[name], "reference"), p)


@pytest.mark.parametrize("name", ["SFT", "GRPO", "GSPO"])
def test_regularisers_temperature_and_softcap(name, problem, backend, small_chunks):
    p = problem()
    changes = {
        "entropy_coef": 0.1,
        "kl_coef": 0.2,
        "softcap": 6.0,
        "temperature": torch.rand(150, generator=torch.Generator().manual_seed(1)) + 0.5,
    }
    assert_same(p.loss(PRESETS[name], backend, **changes), p.loss(PRESETS[name], "reference", **changes), p)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_with_regularisers(problem, backend, dtype, small_chunks):
    """The project's bounds for low-precision inputs: 1e-4 for log-probabilities, 1e-2 by norm for gradients."""
    p = problem(n=100, dtype=dtype)
    changes = {"entropy_coef": 0.1, "kl_coef": 0.1, "softcap": 20.0, "temperature": 0.8}
    (out, grads), (ref, want) = (p.loss(upge.GRPO(), b, **changes) for b in (backend, "reference"))
    assert (out.logprobs - ref.logprobs).abs().max() <= 1e-4
    for g, r in zip(grads, want, strict=True):
        assert relative(g, r) <= 1e-2


@pytest.mark.parametrize("regularised", [False, True])
def test_all_presets_in_one_call(problem, backend, regularised, small_chunks):
    p = problem(n=300)
    presets = list(PRESETS.values())
    changes = {
        "objective_index": torch.arange(300) % len(presets),
        "entropy_coef": 0.05 * regularised,
        "kl_coef": 0.1 * regularised,
    }
    assert_same(p.loss(presets, backend, **changes), p.loss(presets, "reference", **changes), p)


def test_mixed_call_is_the_sum_of_its_parts(problem, backend):
    """A batch of SFT and GRPO tokens has the gradient of two separate calls."""
    p = problem()
    index = (torch.arange(150) % 3 == 0).int()
    both, grads = p.loss([upge.GRPO(), upge.SFT()], backend, objective_index=index)
    parts = []
    for number, objective in enumerate((upge.GRPO(), upge.SFT())):
        _, g = p.loss(objective, backend, mask=p.inputs["mask"] & (index == number))
        parts.append([x.clone() for x in g])
    for whole, a, b in zip(grads, *parts, strict=True):
        assert relative(a + b, whole) <= 1e-6
    assert both.loss.dtype == torch.float32


def formulas(l, a, old, ids):
    """The papers' per-token losses, as in TRL's GRPOTrainer or the authors' code."""
    r = torch.exp(l - old)
    clipped = lambda low, high: -torch.min(r * a, torch.clamp(r, 1 - low, 1 + high) * a)
    pi = l.exp()
    mean = torch.stack([(l - old)[ids == i].mean() if (ids == i).any() else l.new_zeros(()) for i in range(9)])
    s = mean.exp()[ids]
    gspo = -torch.min(s * a, torch.clamp(s, 0.97, 1.04) * a)
    sapo = lambda tau: torch.sigmoid(tau * (r - 1)) * 4 / tau
    return {
        "SFT": -l,
        "REINFORCE": -a * l,
        "PPO": clipped(0.2, 0.2),
        "PPO-dual": torch.where(a < 0, torch.min(clipped(0.2, 0.2), -1.1 * a), clipped(0.2, 0.2)),
        "GRPO": clipped(0.2, 0.2),
        "DrGRPO": clipped(0.2, 0.2),
        "unclipped": -r * a,
        "clipped-below": -torch.min(r * a, r.clamp(min=0.8) * a),
        "DAPO": clipped(0.2, 0.28),
        "CISPO": -torch.clamp(r, max=1.2).detach() * a * l,
        "CISPO-drop": -torch.where((a > 0) & (r > 1.2), 0.0, r).detach() * a * l,
        "GSPO": gspo,
        "GSPO-dual": torch.where(a < 0, torch.min(gspo, -1.02 * a), gspo),
        "SRFT": -a * pi,
        "LUFFY": -a * pi / (pi + 0.1),
        "DFT": -pi.detach() * l,
        "SAPO": -torch.where(a > 0, sapo(1.0), sapo(1.05)) * a,
        "function": -r * a,
    }


@pytest.mark.parametrize("name", PRESETS)
def test_reference_is_the_published_formula(name, problem):
    p = problem()
    x = p.inputs
    m = x["mask"]
    w = x["weights"].double()
    tis = (x["old_logprobs"] - x["rollout_logprobs"]).exp().clamp(max=2.0).double()
    l, entropy, _ = p.in_float64()
    per_token = formulas(l[m], x["advantages"][m], x["old_logprobs"][m], x["sequence_ids"][m])[name]
    gap = x["ref_logprobs"][m] - l[m]
    kl = gap.exp() - gap - 1
    loss = (w[m] * (tis[m] * per_token - 0.01 * entropy[m] + 0.04 * kl)).sum()
    want = torch.autograd.grad(loss, p.leaves)
    out, grads = p.loss(PRESETS[name], "reference", entropy_coef=0.01, kl_coef=0.04)
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-6, atol=1e-7)
    for g, r in zip(grads, want, strict=True):
        assert relative(g, r) <= 1e-6


@pytest.mark.parametrize(
    "name", ["SFT", "REINFORCE", "PPO", "PPO-dual", "unclipped", "DAPO", "GSPO", "SRFT", "LUFFY", "SAPO", "function"]
)
def test_reference_gradient_by_finite_differences(name, problem):
    """Objectives without a detached factor: the gradient is the derivative of the loss value."""
    p = problem(n=6, d=3, v=5)
    coefficients = {"entropy_coef": torch.full((6,), 0.3), "kl_coef": torch.rand(6), "lse_coef": torch.full((6,), 0.1)}
    tokens = TokenInputs(**p.inputs | {"mask": torch.ones(6, dtype=torch.bool)}, **coefficients)
    formula = LossFormula((PRESETS[name],), kl="k3_ratio")

    def loss(hidden, weight):
        values = reference.statistics(HeadInputs(hidden, weight, p.targets, p.bias.detach(), 0.7, 4.0))
        loss, _ = reference.policy_loss(tokens, formula, values)
        return loss

    assert torch.autograd.gradcheck(
        loss, (p.hidden.detach().double().requires_grad_(), p.weight.detach().double().requires_grad_())
    )


def test_coefficients_of_the_design_table(problem, backend):
    """g as in the README's table, from the call's own ratio and log-probability."""
    p = problem()
    x = p.inputs | {"rollout_logprobs": None}
    m, a, w = x["mask"], x["advantages"], x["weights"]
    pi = lambda out: out.logprobs.exp()
    s = lambda out, tau: torch.sigmoid(tau * (out.ratio - 1))
    tau = torch.where(a > 0, 1.0, 1.05)
    table = {
        "SFT": lambda o: -w,
        "REINFORCE": lambda o: -w * a,
        "PPO": lambda o: -w * o.stable * a * o.ratio,
        "CISPO": lambda o: -w * a * o.ratio.clamp(max=1.2),
        "CISPO-drop": lambda o: -w * o.stable * a * o.ratio,
        "SRFT": lambda o: -w * a * pi(o),
        "LUFFY": lambda o: -w * a * 0.1 * pi(o) / (pi(o) + 0.1) ** 2,
        "DFT": lambda o: -w * pi(o),
        "SAPO": lambda o: -w * a * 4 * s(o, tau) * (1 - s(o, tau)) * o.ratio,
    }
    for name, coefficient in table.items():
        out, _ = p.loss(PRESETS[name], backend, rollout_logprobs=None)
        torch.testing.assert_close(out.coefficient[m], coefficient(out)[m], rtol=1e-5, atol=1e-9)


def test_gspo_coefficient_with_weights_that_hold_the_length(problem, backend):
    p = problem()
    x = p.inputs
    ids, m = x["sequence_ids"], x["mask"]
    a = torch.randn(9, generator=torch.Generator().manual_seed(3))[ids]
    length = torch.bincount(ids[m], minlength=9)[ids].clamp(min=1)
    w = 1 / (9 * length.float())
    out, _ = p.loss(upge.GSPO(0.03, 0.04), backend, advantages=a, weights=w, rollout_logprobs=None)
    torch.testing.assert_close(out.coefficient[m], (-w * out.stable * a * out.ratio)[m], rtol=1e-5, atol=1e-9)
    assert 0 < out.stable[m].sum() < m.sum()  # only some sequences are clipped


def test_user_function_per_token_and_whole(problem, backend, small_chunks):
    """A per-token function gives the same in one pass. A function that couples tokens sees them all at once."""
    p = problem()
    ppo = lambda l, b: (
        -torch.min((l - b.old_logprobs).exp() * b.advantages, (l - b.old_logprobs).exp().clamp(0.8, 1.2) * b.advantages)
    )
    want, want_grads = p.loss(upge.PPO(), backend)
    for per_token in (False, True):
        out, grads = p.loss(upge.Objective.from_function(ppo, per_token=per_token), backend)
        torch.testing.assert_close(out.coefficient, want.coefficient, rtol=1e-5, atol=1e-9)
        for g, r in zip(grads, want_grads, strict=True):
            assert relative(g, r) <= 1e-6
    seen = []
    coupled = upge.Objective.from_function(lambda l, b: seen.append(len(l)) or -(l - l.mean()).square() * b.mask)
    assert_same(p.loss(coupled, backend), p.loss(coupled, "reference"), p)
    assert set(seen) == {int(p.inputs["mask"].sum())}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["GRPO", "function"])
def test_evaluation_without_gradients(mode, name, problem):
    p, objective = problem(n=9), PRESETS[name]
    call = lambda backend: upge.fused_policy_loss(p.hidden, p.weight, p.targets, objective, backend=backend, **p.inputs)
    want = call("torch")
    for backend in ("torch", "triton", "reference"):
        with mode():
            out = call(backend)
        assert not out.loss.requires_grad
        torch.testing.assert_close(out.loss, want.loss.detach())
        torch.testing.assert_close(out.coefficient, want.coefficient, rtol=1e-4, atol=1e-7)


def test_a_function_may_return_another_dtype(problem, backend):
    p = problem(n=9)
    wide = upge.Objective.from_function(lambda l, b: -l.double())
    (out, grads), (want, wanted) = (p.loss(o, backend) for o in (wide, upge.SFT()))
    torch.testing.assert_close(out.loss, want.loss)
    torch.testing.assert_close(grads, wanted)


def test_defaults_are_the_papers():
    """Each value stands in its preset's docstring with its source."""
    for preset in (upge.PPO, upge.GRPO, upge.DrGRPO):
        assert preset().mask == upge.Clip(low=0.2, high=0.2)
    assert upge.DAPO().mask == upge.Clip(low=0.2, high=0.28)
    assert upge.GSPO().mask == upge.Clip(low=3e-4, high=4e-4)
    assert (upge.CISPO().mask.lower, upge.CISPO().mask.upper, upge.CISPO().mask.drop) == (0, 1.2, False)
    assert upge.LUFFY().mask == upge.Shaping(0.1)
    assert upge.SAPO().mask == upge.SoftGate(tau_positive=1.0, tau_negative=1.05)


def test_a_clip_of_0_keeps_tokens_at_r_1(problem, any_backend):
    """A mask acts beyond its bounds, not on them: on-policy tokens have their gradient with any clip."""
    p = problem(n=40)
    m, expected = p.inputs["mask"], -p.inputs["weights"] * p.inputs["advantages"]
    for objective in (upge.PPO(0, 0), upge.PPO(1, 0), upge.CISPO(0, clip_low=0), upge.CISPO(0, True, clip_low=0)):
        out, _ = p.loss(objective, any_backend, old_logprobs=None, rollout_logprobs=None)
        assert out.stable[m].all()
        torch.testing.assert_close(out.coefficient[m], expected[m], rtol=1e-6, atol=0)
    out, _ = p.loss(upge.GSPO(0, 0), any_backend, old_logprobs=None, rollout_logprobs=None)
    assert out.stable[m].all()
    assert out.coefficient[m].all()


def test_copies_have_keys_of_their_own():
    original = upge.PPO(dual_clip=3.0)
    for copied in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert copied == original
        assert upge.Objective.by_key(copied.key) is copied


def test_truncated_importance_sampling_is_a_weight_of_the_policy_term(problem, backend):
    p = problem()
    x = p.inputs
    factor = (x["old_logprobs"] - x["rollout_logprobs"]).exp().clamp(max=1.1)
    regularisers = {
        "entropy_coef": 0.1 / factor,
        "kl_coef": 0.1 / factor,
        "lse_coef": 0.1 / factor,
    }
    want = p.loss(upge.GRPO(), backend, rollout_logprobs=None, weights=x["weights"] * factor, **regularisers)
    got = p.loss(upge.GRPO(), backend, tis_clip=1.1, entropy_coef=0.1, kl_coef=0.1, lse_coef=0.1)
    torch.testing.assert_close(got[0].loss, want[0].loss)
    torch.testing.assert_close(got[0].coefficient, want[0].coefficient, rtol=1e-5, atol=1e-9)
    for a, b in zip(got[1], want[1], strict=True):
        assert relative(a, b) <= 1e-5


@pytest.mark.parametrize("first", [1, 63, 65])
def test_sequences_across_the_edges_of_chunks(first, problem, backend, small_chunks):
    """Chunks have 64 rows. Sequences end just before, at and after an edge, and one spans several chunks."""
    lengths = torch.tensor([first, 1, 130, 64])
    p = problem(n=int(lengths.sum()))
    presets = [upge.GSPO(0.03, 0.04), upge.GRPO(), upge.SFT()]
    changes = {
        "sequence_ids": torch.arange(4).repeat_interleave(lengths),
        "objective_index": torch.tensor([0, 1, 0, 2]).repeat_interleave(lengths),
        "mask": None,
    }
    assert_same(p.loss(presets, backend, **changes), p.loss(presets, "reference", **changes), p)
    # A sequence's loss and gradient do not depend on the other sequences.
    whole, _ = p.loss(upge.GSPO(0.03, 0.04), backend, **changes | {"objective_index": None})
    rows = changes["sequence_ids"] == 2
    alone, _ = p.loss(upge.GSPO(0.03, 0.04), backend, **changes | {"objective_index": None, "mask": rows})
    assert torch.equal(alone.ratio[rows], whole.ratio[rows])
    torch.testing.assert_close(alone.coefficient[rows], whole.coefficient[rows], rtol=0, atol=0)
