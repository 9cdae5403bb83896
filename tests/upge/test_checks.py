"""Bad input: one clear error that names the argument, what it got and what is allowed."""

from __future__ import annotations

import pytest
import torch
import upge
from upge.backends import tiling

N, D, V = 4, 3, 5


def arguments(**changes):
    base = {
        "hidden": torch.zeros(N, D), "weight": torch.zeros(V, D), "targets": torch.zeros(N, dtype=torch.long),
        "objectives": upge.GRPO(), "advantages": torch.ones(N), "old_logprobs": torch.zeros(N),
    }  # fmt: skip
    return base | changes


nan, inf = float("nan"), float("inf")
CASES = [
    ({"hidden": torch.zeros(2, N, D)}, ValueError, r"hidden.*\(N, D\).*\(2, 4, 3\)"),
    ({"hidden": torch.zeros(N, D, dtype=torch.float64)}, TypeError, "hidden.*bfloat16, float16, float32.*float64"),
    ({"hidden": [[0.0]]}, TypeError, "hidden.*tensor.*list"),
    ({"hidden": torch.full((N, D), nan)}, ValueError, "hidden.*finite.*row 0"),
    ({"weight": torch.zeros(V, D + 1)}, ValueError, r"weight.*\(V, 3\).*\(5, 4\)"),
    ({"weight": torch.zeros(V, D, dtype=torch.bfloat16)}, TypeError, "weight.*bfloat16.*float32.*autocast"),
    ({"weight": torch.zeros(0, D)}, ValueError, r"weight.*at least 1.*\(0, 3\)"),
    ({"weight": torch.zeros(V, D, device="meta")}, ValueError, "weight.*device.*cpu.*meta"),
    ({"targets": torch.zeros(N)}, TypeError, "targets.*int64 or int32.*float32"),
    ({"targets": torch.full((N,), V)}, ValueError, r"targets.*\[0, 5\).*5"),
    ({"targets": torch.full((N,), -100)}, ValueError, r"targets.*-100.*mask"),
    ({"targets": torch.zeros(N + 1, dtype=torch.long)}, ValueError, r"targets.*\(N,\) = \(4,\).*\(5,\)"),
    ({"objectives": upge.GRPO}, TypeError, r"objectives.*upge.GRPO\(\)"),
    ({"objectives": []}, TypeError, "objectives.*non-empty"),
    ({"objectives": [upge.SFT(), "ppo"]}, TypeError, "objectives.*'ppo'"),
    ({"objectives": [upge.SFT(), upge.GRPO()]}, ValueError, "objective_index.*None"),
    ({"objective_index": torch.zeros(N)}, TypeError, "objective_index.*int64.*float32"),
    ({"objective_index": torch.ones(N, dtype=torch.long)}, ValueError, r"objective_index.*\[0, 1\).*1"),
    ({"advantages": None}, ValueError, "advantages.*GRPO.*None"),
    ({"advantages": torch.ones(N, dtype=torch.float64)}, TypeError, "advantages.*float32.*float64"),
    ({"advantages": torch.full((N,), nan)}, ValueError, "advantages.*NaN.*row 0"),
    ({"advantages": 1.0}, TypeError, "advantages.*tensor.*float"),
    ({"old_logprobs": None}, ValueError, "old_logprobs.*GRPO.*None"),
    ({"old_logprobs": torch.full((N,), nan)}, ValueError, "old_logprobs.*NaN"),
    ({"old_logprobs": torch.tensor([0, -inf, 0, 0])}, ValueError, "old_logprobs.*infinite.*row 1 is -inf"),
    ({"kl_coef": 0.1, "ref_logprobs": torch.full((N,), -inf)}, ValueError, "ref_logprobs.*infinite.*row 0 is -inf"),
    ({"rollout_logprobs": torch.full((N,), -inf)}, ValueError, "rollout_logprobs.*infinite.*row 0 is -inf"),
    ({"objectives": upge.GSPO()}, ValueError, "sequence_ids.*GSPO.*None"),
    ({"kl_coef": 0.1}, ValueError, "ref_logprobs.*kl_coef.*None"),
    ({"kl_coef": nan}, ValueError, "kl_coef.*finite.*nan"),
    ({"entropy_coef": "much"}, ValueError, "entropy_coef.*'much'"),
    (
        {"objectives": upge.REINFORCE(), "old_logprobs": None, "rollout_logprobs": torch.zeros(N)},
        ValueError,
        "old_logprobs.*only rollout_logprobs",
    ),
    ({"tis_clip": 0.0}, ValueError, "tis_clip.*positive.*0.0"),
    ({"mask": torch.ones(N)}, TypeError, "mask.*bool.*float32"),
    ({"weights": torch.ones(N - 1)}, ValueError, r"weights.*\(4,\).*\(3,\)"),
    ({"weights": torch.full((N,), nan)}, ValueError, "weights.*NaN"),
    ({"bias": torch.zeros(D)}, ValueError, r"bias.*\(V,\) = \(5,\).*\(3,\)"),
    ({"temperature": 0.0}, ValueError, "temperature.*positive.*0.0"),
    ({"temperature": torch.ones(N, requires_grad=True)}, ValueError, "temperature.*constant.*detach"),
    ({"hidden": torch.zeros(N, D, device="meta")}, ValueError, "hidden.*device.*meta"),
    ({"temperature": torch.zeros(N)}, ValueError, "temperature.*positive.*0.0"),
    ({"temperature": torch.ones(N, dtype=torch.float64)}, TypeError, "temperature.*float32.*float64"),
    ({"softcap": -1.0}, ValueError, "softcap.*positive.*-1.0"),
    ({"backend": "cuda"}, ValueError, "backend.*'auto'.*'torch'.*'cuda'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"), CASES, ids=[f"{next(iter(c[0]))}-{i}" for i, c in enumerate(CASES)]
)
def test_bad_argument(change, error, message):
    call = arguments(**change)
    with pytest.raises(error, match=message):
        upge.fused_policy_loss(
            call.pop("hidden"), call.pop("weight"), call.pop("targets"), call.pop("objectives"), **call
        )


def test_good_call_passes():
    call = arguments()
    out = upge.fused_policy_loss(
        call.pop("hidden"), call.pop("weight"), call.pop("targets"), call.pop("objectives"), **call
    )
    assert torch.isfinite(out.loss)


def test_unread_values_may_be_nan():
    """SFT tokens of a mixed batch have no advantage and no old log-probability."""
    sft = torch.tensor([True, False, False, True])
    out = upge.fused_policy_loss(
        torch.randn(N, D), torch.randn(V, D), torch.zeros(N, dtype=torch.long), [upge.GRPO(), upge.SFT()],
        objective_index=sft.long(), advantages=torch.ones(N).masked_fill(sft, nan),
        old_logprobs=torch.zeros(N).masked_fill(sft, nan),
    )  # fmt: skip
    assert torch.isfinite(out.loss)
    assert torch.isfinite(out.coefficient).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: upge.PPO(clip_low=1.5), "PPO clip_low.*1.5"),
        (lambda: upge.DAPO(clip_high=-0.1), "DAPO clip_high.*-0.1"),
        (lambda: upge.PPO(dual_clip=0.5), "dual_clip.*0.5"),
        (lambda: upge.CISPO(clip_high=-1), "CISPO clip_high.*-1"),
        (lambda: upge.LUFFY(gamma=0), "LUFFY gamma.*0"),
        (lambda: upge.LUFFY(gamma=inf), "LUFFY gamma.*finite.*inf"),
        (lambda: upge.SAPO(tau_negative=0), "SAPO tau_negative.*0"),
        (lambda: upge.GRPO("0.2"), "GRPO clip_low.*number.*'0.2'"),
        (lambda: upge.PPO(dual_clip=torch.tensor(3.0)), "PPO dual_clip.*number.*tensor"),
    ],
)
def test_bad_preset(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_user_function():
    def call(function):
        upge.fused_policy_loss(
            torch.zeros(N, D),
            torch.zeros(V, D),
            torch.zeros(N, dtype=torch.long),
            upge.Objective.from_function(function),
        )

    with pytest.raises(TypeError, match="callable"):
        upge.Objective.from_function("loss")
    with pytest.raises(ValueError, match=r"per token.*\(4,\).*\(\)"):
        call(lambda l, b: l.sum())
    with pytest.raises(ValueError, match="depends on logprobs"):
        call(lambda l, b: -l.detach())
    with pytest.raises(TypeError, match=r"per token.*float"):
        call(lambda l, b: 0.0)
    with pytest.raises(ValueError, match=r"advantages.*was not given"):
        call(lambda l, b: -l * b.advantages)
    with pytest.raises(AttributeError, match=r"batch\.rewards.*advantages"):
        call(lambda l, b: -l * b.rewards)


def test_values_on_a_gpu_are_checked_only_in_debug():
    """Reading values makes the CPU wait for a GPU, so there they are checked only inside upge.debug()."""
    from upge import checks

    gpu = torch.device("cuda")
    assert not checks.reads_values(gpu)
    with upge.debug():
        assert checks.reads_values(gpu)
    assert not checks.reads_values(gpu)
    assert checks.reads_values(torch.device("cpu"))


def test_triton_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(tiling, "INTERPRETED", False)
    hidden, targets = torch.zeros(N, D), torch.zeros(N, dtype=torch.long)
    with pytest.raises(ValueError, match=r"backend: 'triton' needs tensors on a CUDA device.*got cpu; use 'torch'"):
        upge.linear_logprobs(hidden, torch.zeros(V, D), targets, backend="triton")
