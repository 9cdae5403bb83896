"""The same numbers as liger-kernel's GRPO losses, for each of its loss types that has a preset here."""

from __future__ import annotations

import pytest
import torch
import upge

liger = pytest.importorskip("liger_kernel.chunked_loss")

B, T, D, V = 4, 9, 16, 53


def batch():
    g = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(*shape, generator=g)
    hidden, weight, bias = randn(B, T, D), randn(V, D), randn(V)
    targets = torch.randint(0, V, (B, T), generator=g)
    lengths = torch.tensor([9, 4, 1, 7])
    mask = torch.arange(T)[None] < lengths[:, None]
    now = torch.log_softmax(hidden @ weight.t() + bias, -1).gather(2, targets[..., None]).squeeze(2)
    return hidden, weight, bias, targets, mask, randn(B), now + 0.3 * randn(B, T), now + 0.3 * randn(B, T)


def normaliser(kind, mask):
    lengths = mask.sum(1, keepdim=True).expand_as(mask)
    return {
        "sequence": 1.0 / (B * lengths),
        "token": torch.full((B, T), 1.0 / mask.sum()),
        "constant": torch.full((B, T), 1.0 / (B * T)),
    }[kind]


CASES = {
    "grpo": ({"loss_type": "grpo"}, upge.GRPO(), "sequence"),
    "bnpo": ({"loss_type": "bnpo"}, upge.PPO(), "token"),
    "dr_grpo": ({"loss_type": "dr_grpo", "max_completion_length": T}, upge.DrGRPO(), "constant"),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, upge.DAPO(), "token"),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, upge.CISPO(), "token"),
    "sapo": ({"loss_type": "sapo"}, upge.SAPO(), "sequence"),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
        upge.GSPO(0.03, 0.04),
        "sequence",
    ),
}


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", CASES)
def test_liger_grpo(name, beta, backend):
    options, objective, kind = CASES[name]
    hidden, weight, bias, targets, mask, advantages, old, ref = batch()
    leaves = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    peer = liger.LigerFusedLinearGRPOLoss(beta=beta, compiled=False, temperature=0.8, **options)
    loss, metrics = peer(
        leaves[0],
        leaves[1],
        targets,
        mask.float(),
        advantages,
        leaves[2],
        ref_per_token_logps=ref,
        old_per_token_logps=old,
    )
    want = torch.autograd.grad(loss, leaves)

    ours = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    out = upge.fused_policy_loss(
        ours[0].view(-1, D),
        ours[1],
        targets.flatten(),
        objective,
        advantages=advantages[:, None].expand(B, T).flatten(),
        weights=normaliser(kind, mask).flatten(),
        old_logprobs=old.flatten(),
        ref_logprobs=ref.flatten(),
        sequence_ids=torch.arange(B).repeat_interleave(T),
        mask=mask.flatten(),
        bias=ours[2],
        temperature=0.8,
        kl_coef=beta,
        backend=backend,
    )
    torch.testing.assert_close(out.loss, loss.detach(), rtol=1e-5, atol=1e-6)
    for g, w in zip(torch.autograd.grad(out.loss, ours), want, strict=True):
        assert (g - w).norm() / w.norm() <= 1e-5
    if name not in ("cispo", "sapo"):  # which report another share of clipped tokens
        clipped = (~out.stable & mask.flatten()).sum() / mask.sum()
        torch.testing.assert_close(clipped, metrics[-1], rtol=1e-6, atol=1e-7)
