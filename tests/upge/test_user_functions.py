"""Objectives that are functions of the user, against formulas written out in float64 and on every backend."""

from __future__ import annotations

import torch
import upge
from upge.token_loss import LossFormula


def test_functions_see_entropy_and_columns_and_report(problem, any_backend):
    """A surrogate on the most uncertain tokens alone, with a term in the entropy that has a gradient."""
    p = problem(n=40)
    x, m = p.inputs, p.inputs["mask"]
    x["rollout_logprobs"] = None
    scale = torch.rand(40)

    def top_entropy(logprobs, batch):
        kept = batch.entropy.detach() > batch.entropy.detach().median()
        loss = -1 * kept * batch.advantages * logprobs * batch.scale - 0.1 * batch.entropy
        return upge.TokenLoss(loss, ratio=2 * torch.ones_like(logprobs), stable=kept)

    l, entropy, _ = (v[m] for v in p.in_float64())
    kept = entropy > entropy.median()
    per_token = -1 * kept * x["advantages"][m] * l * scale[m] - 0.1 * entropy
    objective = upge.Objective.from_function(top_entropy)
    out = p.check(any_backend, objective, (x["weights"][m] * per_token).sum(), columns={"scale": scale})
    assert torch.equal(out.stable[m], kept)
    assert (out.ratio[m] == 2).all()
    both = [objective, upge.SFT()]
    index = torch.arange(40) % 2
    mixed, _ = p.loss(both, any_backend, columns={"scale": scale}, objective_index=index, entropy_coef=0.2)
    assert torch.isfinite(mixed.loss)


def test_a_function_without_a_gradient_in_entropy_costs_no_pass(problem, monkeypatch):
    """The backward of E with an entropy gradient is another pass over E: only where the function asks for it."""
    seen = []
    losses = LossFormula.losses

    def spy(self, *args):
        found = losses(self, *args)
        seen.append(found.coefficients.q is None)
        return found

    monkeypatch.setattr(LossFormula, "losses", spy)
    p = problem(n=9)
    p.loss(upge.Objective.from_function(lambda l, b: -l * b.entropy.detach(), per_token=True), "torch")
    p.loss(upge.Objective.from_function(lambda l, b: -l * b.entropy, per_token=True), "torch")
    assert seen == [True, False]


def test_a_function_of_the_entropy_alone_and_without_gradients(problem, any_backend):
    p = problem(n=9)
    l, entropy, _ = p.in_float64()
    m, w = p.inputs["mask"], p.inputs["weights"]
    p.inputs["rollout_logprobs"] = None
    out = p.check(any_backend, upge.Objective.from_function(lambda l, b: b.entropy), (w[m] * entropy[m]).sum())
    assert not out.coefficient.any()
    constants = p.hidden.detach(), p.weight.detach(), p.targets
    objective = upge.Objective.from_function(lambda l, b: -l)
    got = upge.fused_policy_loss(*constants, objective, bias=p.bias.detach(), backend=any_backend, **p.inputs).loss
    torch.testing.assert_close(got.double(), -(w[m] * l[m]).sum().detach(), rtol=1e-5, atol=1e-6)


def test_entropy_terms_of_functions_and_of_the_call_add_up(problem, any_backend):
    p = problem(n=40)
    functions = [upge.Objective.from_function(lambda l, b, c=c: -l - c * b.entropy) for c in (0.1, 0.3)]
    index = torch.arange(40) % 2
    got, grads = p.loss(functions, any_backend, objective_index=index, entropy_coef=0.05, rollout_logprobs=None)
    coefficients = torch.where(index == 0, 0.15, 0.35)
    want, expected = p.loss(upge.SFT(), any_backend, entropy_coef=coefficients, rollout_logprobs=None)
    torch.testing.assert_close(got.loss, want.loss)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(grads, expected, strict=True))
