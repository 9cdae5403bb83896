"""Every combination of the four parts: refused when it is made, or with one meaning on every backend."""

from __future__ import annotations

import itertools

import pytest
import torch
import upge

MASKS = {
    "Unmasked": upge.Unmasked(),
    "Clip": upge.Clip(0.2, 0.3),
    "dual Clip": upge.Clip(0.2, 0.3, dual=1.4),
    "WeightClip": upge.WeightClip(0.2, low=0.1),
    "hard WeightClip": upge.WeightClip(drop=True, max_ratio=1.1),
    "Shaping": upge.Shaping(0.3),
    "SoftGate": upge.SoftGate(1.0, 1.5),
}
COMBINATIONS = list(
    itertools.product(MASKS, ("policy", "rollout", "sequence", "one"), ("given", "one"), ("log", "ratio"))
)


def has_meaning(mask, reference, likelihood):
    if reference == "policy":
        return mask == "Unmasked"
    if reference == "one":
        return mask in ("Unmasked", "Shaping")
    return likelihood == "log" or "WeightClip" not in mask


def test_all_combinations_are_here():
    assert len(COMBINATIONS) == 112
    assert sum(has_meaning(mask, reference, likelihood) for mask, reference, _, likelihood in COMBINATIONS) == 60


def gain(mask, r, a):
    """What each paper makes of the ratio."""
    if mask == "Clip" or mask == "dual Clip":
        kept = torch.min(r * a, r.clamp(0.8, 1.3) * a) / a
        return torch.where(a < 0, kept.clamp(max=1.4), kept) if mask == "dual Clip" else kept
    if mask == "WeightClip":
        return r.clamp(0.9, 1.2)
    if mask == "hard WeightClip":
        return torch.where((a > 0) & (r > 1.1), 0.0, r)
    if mask == "Shaping":
        return r / (r + 0.3)
    if mask == "SoftGate":
        tau = torch.where(a > 0, 1.0, 1.5)
        return 4 / tau * torch.sigmoid(tau * (r - 1))
    return r


def written_out(mask, reference, likelihood, l, a, old, ids):
    """The per-token loss by autograd on its formula."""
    log_r = {"policy": l - l.detach(), "rollout": l - old, "one": l}.get(reference)
    if reference == "sequence":
        log_r = torch.stack([(l - old)[ids == i].mean() if (ids == i).any() else l.new_zeros(()) for i in range(9)])[
            ids
        ]
    r = log_r.exp()
    if likelihood == "ratio":
        return -gain(mask, r, a) * a
    if "WeightClip" in mask:
        return -gain(mask, r, a).detach() * a * l
    leaf = r.detach().requires_grad_()
    (slope,) = torch.autograd.grad(gain(mask, leaf, a).sum(), leaf)
    return -slope * r.detach() * a * l


@pytest.mark.parametrize(("mask", "reference", "advantage", "likelihood"), COMBINATIONS)
def test_a_combination_is_refused_or_right_on_every_backend(mask, reference, advantage, likelihood, problem):
    make = lambda: upge.Objective(MASKS[mask], reference, advantage, likelihood)
    if not has_meaning(mask, reference, likelihood):
        with pytest.raises(ValueError, match=r"reference: the mask|likelihood: WeightClip"):
            make()
        return
    objective = make()
    p = problem(n=60)
    p.inputs["rollout_logprobs"] = None
    x, m = p.inputs, p.inputs["mask"]
    x["old_logprobs"] += 0.5 * (x["sequence_ids"] % 3 - 1)  # so that the mean over a sequence leaves the clip range
    want, _ = p.loss(objective, "reference")
    l = want.logprobs[m].double().requires_grad_()
    a = x["advantages"][m].double() if advantage == "given" else torch.ones_like(l)
    per_token = x["weights"][m] * written_out(
        mask, reference, likelihood, l, a, x["old_logprobs"][m].double(), x["sequence_ids"][m]
    )
    (g,) = torch.autograd.grad(per_token.sum(), l)
    for backend in ("reference", "torch", "triton"):
        out, _ = p.loss(objective, backend)
        # l has an error of about 1e-6 (the rounding of 24 products), r and its smooth functions a few times that.
        torch.testing.assert_close(out.token_loss[m].double(), per_token.detach(), rtol=2e-5, atol=1e-8)
        torch.testing.assert_close(out.coefficient[m].double(), g, rtol=2e-5, atol=1e-8)
        assert torch.equal(out.stable, want.stable)
    if mask in ("Unmasked", "Shaping", "SoftGate"):
        assert want.stable[m].all()
    else:
        assert 0 < want.stable[m].sum() < m.sum()  # the mask acts on some tokens
