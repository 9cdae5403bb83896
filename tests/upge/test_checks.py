"""Bad input: one clear error that names the argument, what it got and what is allowed."""

from __future__ import annotations

import pytest
import torch
import upge
from upge.backends import plan

N, D, V = 4, 3, 5


def arguments(**changes):
    base = {
        "hidden": torch.zeros(N, D), "weight": torch.zeros(V, D), "targets": torch.zeros(N, dtype=torch.long),
        "objectives": upge.GRPO(), "advantages": torch.ones(N), "old_logprobs": torch.zeros(N),
    }  # fmt: skip
    return base | changes


nan, inf = float("nan"), float("inf")
CASES = [
    ({"hidden": torch.zeros(2, N, D)}, ValueError, r"targets.*\(\.\.\.\) = \(2, 4\).*\(4,\)"),
    ({"hidden": torch.zeros(())}, ValueError, r"hidden.*\(\.\.\., D\).*\(\)"),
    ({"hidden": torch.zeros(N, D).to_sparse()}, TypeError, "hidden.*dense.*sparse_coo.*to_dense"),
    ({"weight": torch.zeros(V, D).to_sparse_csr()}, TypeError, "weight.*dense.*sparse_csr"),
    ({"weight": torch.zeros(V)}, ValueError, r"weight.*\(V, D\).*\(5,\)"),
    ({"hidden": torch.zeros(N, D, dtype=torch.float64)}, TypeError, "^hidden: must be bfloat16 or float16 or float32"),
    ({"weight": torch.zeros(V, D, dtype=torch.int64)}, TypeError, "^weight: must be bfloat16.*int64"),
    ({"hidden": [[0.0]]}, TypeError, "hidden.*tensor.*list"),
    ({"hidden": torch.full((N, D), nan)}, ValueError, "hidden.*finite.*row 0"),
    ({"weight": torch.zeros(V, D + 1)}, ValueError, r"weight.*\(V, 3\).*\(5, 4\)"),
    ({"weight": torch.zeros(V, D, dtype=torch.float64)}, TypeError, "weight.*bfloat16.*float64"),
    ({"weight": torch.zeros(0, D)}, ValueError, r"weight.*at least 1.*\(0, 3\)"),
    ({"hidden": torch.zeros(N, 0), "weight": torch.zeros(V, 0)}, ValueError, r"weight.*at least 1.*\(5, 0\)"),
    ({"weight": torch.zeros(V, D, device="meta")}, ValueError, "weight.*device.*cpu.*meta"),
    ({"targets": torch.zeros(N, dtype=torch.long, device="meta")}, ValueError, "^targets: .*device.*cpu.*meta"),
    ({"advantages": torch.ones(N, device="meta")}, ValueError, "advantages.*device.*cpu.*meta"),
    ({"targets": torch.zeros(N)}, TypeError, "^targets: .*int64 or int32.*float32"),
    ({"targets": torch.full((N,), V)}, ValueError, r"targets.*\[0, 5\).*5"),
    ({"targets": torch.full((N,), -1)}, ValueError, r"targets.*-1.*mask= or ignore_index="),
    ({"targets": torch.full((N,), -100), "ignore_index": -1}, ValueError, r"targets.*-100"),
    ({"ignore_index": None}, TypeError, "ignore_index.*int.*None"),
    ({"ignore_index": True}, TypeError, "ignore_index.*int.*True"),
    ({"targets": torch.zeros(N + 1, dtype=torch.long)}, ValueError, r"targets.*\(\.\.\.\) = \(4,\).*\(5,\)"),
    ({"objectives": upge.GRPO}, TypeError, r"objectives.*GRPO at .*>; call the preset, e.g. upge.GRPO\(\)$"),
    ({"objectives": []}, TypeError, r"objectives.*non-empty.*got \[\]$"),
    ({"objectives": [upge.SFT(), "ppo"]}, TypeError, "objectives.*'ppo'"),
    ({"objectives": [upge.SFT(), upge.GRPO()]}, ValueError, "objective_index.*None"),
    ({"objective_index": torch.zeros(N)}, TypeError, "objective_index.*int64.*float32"),
    ({"objective_index": torch.ones(N, dtype=torch.long)}, ValueError, r"objective_index.*\[0, 1\).*1"),
    ({"advantages": None}, ValueError, "advantages.*GRPO.*None"),
    ({"advantages": torch.ones(N, dtype=torch.int64)}, TypeError, "advantages.*float32.*int64"),
    ({"advantages": torch.full((N,), nan)}, ValueError, "advantages.*NaN.*row 0"),
    ({"advantages": 1.0}, TypeError, "advantages.*tensor.*float"),
    ({"old_logprobs": torch.full((N,), nan)}, ValueError, "old_logprobs.*NaN"),
    ({"old_logprobs": torch.tensor([0, -inf, 0, 0])}, ValueError, "old_logprobs.*infinite.*row 1 is -inf"),
    ({"kl_coef": 0.1, "ref_logprobs": torch.full((N,), -inf)}, ValueError, "ref_logprobs.*infinite.*row 0 is -inf"),
    ({"rollout_logprobs": torch.full((N,), -inf)}, ValueError, "rollout_logprobs.*infinite.*row 0 is -inf"),
    (
        {"objectives": upge.REINFORCE(), "old_logprobs": torch.full((N,), nan), "rollout_logprobs": torch.zeros(N)},
        ValueError,
        "old_logprobs.*NaN.*row 0 is nan",
    ),
    ({"rollout_logprobs": torch.full((N,), nan)}, ValueError, "rollout_logprobs.*NaN.*row 0 is nan"),
    ({"objectives": upge.GSPO()}, ValueError, "sequence_ids.*GSPO.*None"),
    (
        {"objectives": upge.GSPO(), "sequence_ids": torch.arange(N), "old_logprobs": torch.full((N,), nan)},
        ValueError,
        "old_logprobs.*NaN.*row 0 is nan",
    ),
    ({"kl_coef": 0.1}, ValueError, "ref_logprobs.*kl_coef.*None"),
    ({"kl_coef": nan}, ValueError, "kl_coef.*finite.*nan"),
    ({"entropy_coef": "much"}, ValueError, "entropy_coef.*'much'"),
    (
        {"objectives": upge.REINFORCE(), "old_logprobs": None, "rollout_logprobs": torch.zeros(N)},
        ValueError,
        "old_logprobs.*only rollout_logprobs",
    ),
    ({"tis_clip": 0.0}, ValueError, "tis_clip.*positive.*0.0"),
    ({"tis_clip": inf}, ValueError, "tis_clip.*positive.*inf"),
    ({"tis": "row"}, ValueError, "tis: .*'token', 'sequence'.*'row'"),
    ({"tis_mode": "drop"}, ValueError, "tis_mode.*'clip', 'mask'.*'drop'"),
    ({"tis_min": -0.1}, ValueError, r"tis_min.*\[0, 2.0\].*-0.1"),
    ({"tis_min": 3.0}, ValueError, r"tis_min.*\[0, 2.0\].*3.0"),
    ({"tis": "sequence", "rollout_logprobs": torch.zeros(N)}, ValueError, "sequence_ids.*tis='sequence'.*None"),
    ({"kl": "k4"}, ValueError, "kl: .*'k3_ratio'.*'k4'"),
    ({"evaluate": "none"}, ValueError, "evaluate.*'needed', 'all'.*'none'"),
    ({"max_log_ratio": 0}, ValueError, r"max_log_ratio.*\(0, 80\].*0"),
    ({"max_log_ratio": 100.0}, ValueError, r"max_log_ratio.*\(0, 80\].*100.0"),
    ({"entropy_coef": torch.ones(N + 1)}, ValueError, r"entropy_coef.*\(4,\).*\(5,\)"),
    ({"entropy_coef": torch.tensor([0, nan, 0, 0])}, ValueError, "entropy_coef.*NaN.*row 1"),
    ({"lse_coef": inf}, ValueError, "lse_coef.*finite.*inf"),
    ({"lse_coef": torch.ones(N, dtype=torch.int64)}, TypeError, "lse_coef.*float32.*int64"),
    ({"kl_coef": torch.ones(N)}, ValueError, "ref_logprobs.*kl_coef.*None"),
    ({"logit_scale": 0}, ValueError, "logit_scale.*positive.*0"),
    ({"columns": [torch.ones(N)]}, TypeError, "columns.*dict.*list"),
    ({"columns": {"extra": torch.ones(N + 1)}}, ValueError, r"columns\['extra'\].*\(4,\).*\(5,\)"),
    ({"columns": {"advantages": torch.ones(N)}}, ValueError, "columns.*'advantages' is the name of an argument"),
    ({"columns": {"entropy": torch.ones(N)}}, ValueError, "columns.*'entropy' is the name of an argument"),
    ({"columns": {"my column": torch.ones(N)}}, ValueError, "columns.*identifiers.*'my column'"),
    ({"columns": {"_values": torch.ones(N)}}, ValueError, "columns.*leading underscore.*'_values'"),
    ({"columns": {"class": torch.ones(N)}}, ValueError, "columns.*identifiers.*'class'"),
    ({"columns": {"importance": torch.ones(N)}}, ValueError, "columns.*'importance' is the name of an argument"),
    ({"softcap": 1e39}, ValueError, r"softcap.*1e30.*1e\+39"),
    ({"temperature": 10**400}, ValueError, "temperature.*1e30"),
    ({"ignore_index": 2**70}, ValueError, "ignore_index.*int64"),
    ({"entropy_coef": 1e300}, ValueError, r"entropy_coef.*float32.*1e\+300"),
    ({"weights": torch.ones(N).to_sparse()}, TypeError, "weights.*dense.*sparse_coo"),
    ({"mask": torch.ones(N, dtype=torch.bool).to_sparse()}, TypeError, "mask.*dense.*sparse_coo"),
    ({"targets": torch.zeros(N, dtype=torch.long).to_sparse()}, TypeError, "targets.*dense.*sparse_coo"),
    ({"group": 1}, TypeError, "group: must be a process group.*int"),
    ({"bias": torch.tensor([0, nan, 0, 0, 0])}, ValueError, "bias.*-inf.*nan"),
    ({"bias": torch.tensor([0, inf, 0, 0, 0])}, ValueError, "bias.*-inf.*inf"),
    ({"bias": torch.tensor([-inf, 0, 0, 0, 0])}, ValueError, "bias.*targets.*entry 0 is -inf"),
    ({"mask": torch.ones(N)}, TypeError, "mask.*bool.*float32"),
    ({"weights": torch.ones(N - 1)}, ValueError, r"weights.*\(4,\).*\(3,\)"),
    ({"weights": torch.full((N,), nan)}, ValueError, "weights.*NaN"),
    ({"bias": torch.zeros(D)}, ValueError, r"^bias: .*\(V,\) = \(5,\).*\(3,\)"),
    ({"temperature": 0.0}, ValueError, "temperature.*positive.*0.0"),
    ({"temperature": torch.ones(N, requires_grad=True)}, ValueError, "temperature.*constant.*detach"),
    ({"hidden": torch.zeros(N, D, device="meta")}, ValueError, "hidden.*device.*meta"),
    ({"temperature": torch.zeros(N)}, ValueError, "temperature.*positive.*0.0"),
    ({"temperature": torch.ones(N, dtype=torch.int64)}, TypeError, "temperature.*float32.*int64"),
    ({"temperature": torch.full((N,), inf)}, ValueError, "temperature.*1e30.*inf"),
    ({"temperature": torch.full((N,), 9e-31)}, ValueError, r"temperature.*1e-30.*e-31"),
    ({"temperature": torch.full((N,), 1e10), "logit_scale": 1e-21}, ValueError, r"temperature.*1e30.*e\+3"),
    ({"temperature": 1e-10, "logit_scale": 1e21}, ValueError, r"temperature / logit_scale.*1e-10 / 1e\+21"),
    ({"softcap": 1e-10, "logit_scale": 1e21}, ValueError, r"softcap / logit_scale.*1e-10 / 1e\+21"),
    ({"temperature": inf}, ValueError, "temperature.*1e30.*inf"),
    ({"softcap": -1.0}, ValueError, "softcap.*positive.*-1.0"),
    ({"softcap": inf}, ValueError, "softcap.*1e30.*None; got inf"),
    ({"softcap": nan}, ValueError, "softcap.*1e30.*None; got nan"),
    ({"tis": "token", "rollout_logprobs": torch.zeros(N), "tis_mode": "cut"}, ValueError, "^tis_mode: must be"),
    ({"evaluate": "some"}, ValueError, "^evaluate: must be"),
    ({"ignore_index": 2**63}, ValueError, "^ignore_index: must fit int64; got 9223372036854775808"),
    ({"ignore_index": -(2**63) - 1}, ValueError, "^ignore_index: must fit int64; got -9223372036854775809"),
    ({"weight": torch.zeros(V, D, device="meta")}, ValueError, "^weight: .*device.*cpu.*meta"),
    ({"hidden": [1.0]}, TypeError, "^hidden: must be a tensor; got list"),
    ({"weight": [1.0]}, TypeError, "^weight: must be a tensor; got list"),
    ({"max_log_ratio": 80.5}, ValueError, "^max_log_ratio: must.*80.5"),
    ({"objective_index": torch.zeros(N)}, TypeError, "^objective_index: .*int64"),
    ({"objectives": upge.GSPO(), "sequence_ids": torch.zeros(N)}, TypeError, "^sequence_ids: .*int64"),
    (
        {"objectives": upge.GSPO(), "sequence_ids": torch.zeros(N - 1, dtype=torch.long)},
        ValueError,
        r"^sequence_ids: .*\(4,\)",
    ),
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


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    "change",
    [
        {"tis_clip": 0.5},
        {"tis_clip": LARGEST},
        {"tis_min": 0.0},
        {"tis_min": 1.5, "tis_clip": 1.5},
        {"max_log_ratio": 80.0},
        {"ignore_index": 2**63 - 1},
        {"ignore_index": -(2**63)},
        {"temperature": 1e-30},
        {"temperature": 1e30, "softcap": 1e-30},
        {"temperature": torch.full((N,), 1e-30)},
        {"temperature": torch.full((N,), 1e30)},
        {"entropy_coef": LARGEST},
        {"entropy_coef": -LARGEST},
    ],
    ids=str,
)
def test_numbers_on_their_bounds_are_taken(change):
    tis = {"tis": "token", "rollout_logprobs": torch.zeros(N)} if "tis" in next(iter(change)) else {}
    call = arguments(**tis, **change)
    upge.fused_policy_loss(call.pop("hidden"), call.pop("weight"), call.pop("targets"), call.pop("objectives"), **call)


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


def test_what_one_of_several_objectives_reads_is_checked_on_its_tokens():
    index, first, last = torch.tensor([0, 0, 1, 1]), torch.tensor([nan, 0, 0, 0]), torch.tensor([0, 0, 0, nan])

    def call(*objectives, **values):
        call = arguments(objectives=list(objectives), objective_index=index, **values)
        upge.fused_policy_loss(
            call.pop("hidden"), call.pop("weight"), call.pop("targets"), call.pop("objectives"), **call
        )

    for values in (first, last):
        with pytest.raises(ValueError, match=r"advantages: must not be NaN"):
            call(upge.REINFORCE(), upge.GRPO(), advantages=values)
        with pytest.raises(ValueError, match=r"old_logprobs: must not be NaN"):
            call(upge.GRPO(), upge.DAPO(), old_logprobs=values)
    call(upge.SFT(), upge.GRPO(), advantages=first, old_logprobs=first)
    call(upge.GRPO(), upge.SFT(), advantages=last, old_logprobs=last)
    kl = {"ref_logprobs": torch.zeros(N), "kl_coef": torch.tensor([0.0, 0.0, 0.0, 0.1])}
    call(upge.GRPO(), upge.SFT(), old_logprobs=last, kl="k3", **kl)
    for values in (first, last):
        with pytest.raises(ValueError, match=r"old_logprobs: must not be NaN"):
            call(upge.GRPO(), upge.SFT(), old_logprobs=values, kl="k3_ratio", **kl)


def test_what_nothing_reads_is_not_refused():
    """Values of tokens that do not count, and those that neither objective nor KL penalty reads."""
    mask = torch.tensor([True, False, True, False])
    columns = ("advantages", "old_logprobs", "ref_logprobs", "rollout_logprobs", "weights", "temperature")
    given = {name: torch.linspace(-1, -0.5, N).abs() for name in (*columns, "entropy_coef", "kl_coef", "lse_coef")}
    spoiled = {name: value.masked_fill(~mask, nan) for name, value in given.items()}
    hidden, targets, index = torch.ones(N, D), torch.zeros(N, dtype=torch.long), torch.zeros(N, dtype=torch.long)
    call = lambda hidden, targets, index, **values: upge.fused_policy_loss(
        hidden, torch.eye(V, D), targets, [upge.GRPO(), upge.SFT()], mask=mask, objective_index=index, **values
    )
    want = call(hidden, targets, index, **given)
    ids = [x.masked_fill(~mask, -7) for x in (targets, index)]
    out = call(hidden.masked_fill(~mask[:, None], nan), *ids, **spoiled)
    assert all(torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(out, want, strict=True))
    unread = {"old_logprobs": torch.full((N,), nan), "ref_logprobs": torch.full((N,), nan)}
    assert torch.isfinite(call(hidden, targets, index + 1, advantages=torch.full((N,), nan), **unread).loss)
    upge.fused_policy_loss(hidden, torch.eye(V, D), targets, upge.REINFORCE(), advantages=torch.ones(N), **unread)


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
    with pytest.raises(TypeError, match=r"float dtype; got torch.complex64"):
        call(lambda l, b: -l * 1j)
    with pytest.raises(TypeError, match=r"per token.*float"):
        call(lambda l, b: 0.0)
    for name in ("ratio", "stable"):
        with pytest.raises(TypeError, match=rf"TokenLoss.{name} must be None or a tensor of shape \(4,\); got float"):
            call(lambda l, b, name=name: upge.TokenLoss(-l, **{name: 1.0}))
    with pytest.raises(ValueError, match=r"advantages: objective 'function' reads it, but the call was not given it"):
        call(lambda l, b: -l * b.advantages)
    with pytest.raises(AttributeError, match=r"batch\.rewards.*advantages"):
        call(lambda l, b: -l * b.rewards)


def test_values_on_a_gpu_are_checked_only_in_debug():
    """Reading values makes the CPU wait for a GPU, so there they are checked only inside upge.debug()."""
    from upge import debugging

    gpu = torch.device("cuda")
    assert not debugging.reads_values(gpu)
    with upge.debug():
        assert debugging.reads_values(gpu)
    assert not debugging.reads_values(gpu)
    assert debugging.reads_values(torch.device("cpu"))


@pytest.mark.parametrize("value", [nan, inf])
def test_the_weight_is_read_in_debug(value):
    weight = torch.zeros(V, D)
    weight[3, 1] = value
    call = lambda: upge.fused_policy_loss(torch.ones(N, D), weight, torch.zeros(N, dtype=torch.long), upge.SFT())
    call()
    with upge.debug(), pytest.raises(ValueError, match=r"weight.*finite.*row 3"):
        call()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda l, b: l / 0.0, "'function': its loss must be finite.*row 0"),
        (lambda l, b: (l - l.detach()).sqrt(), "'function': its gradient with respect to logprobs.*inf"),
        (lambda l, b: -l + (b.entropy - b.entropy.detach()).sqrt(), "'function': its gradient with respect to entropy"),
    ],
)
def test_a_function_that_is_not_finite(function, message):
    objective = upge.Objective.from_function(function)
    with pytest.raises(ValueError, match=message):
        upge.fused_policy_loss(torch.ones(N, D), torch.zeros(V, D), torch.zeros(N, dtype=torch.long), objective)


def test_a_dtensor_is_refused():
    class DTensor(torch.Tensor):
        pass

    call = arguments(weight=torch.zeros(V, D).as_subclass(DTensor))
    with pytest.raises(TypeError, match=r"^weight: .*DTensor"):
        upge.fused_policy_loss(
            call.pop("hidden"), call.pop("weight"), call.pop("targets"), call.pop("objectives"), **call
        )


def test_a_quantized_weight_is_refused():
    """torchao's are wrappers around other tensors, as this one is."""
    from torch.testing._internal.two_tensor import TwoTensor

    weight = TwoTensor(torch.ones(4, 2), torch.ones(4, 2))
    with pytest.raises(TypeError, match=r"weight: must be a plain tensor; got TwoTensor. Dequantize"):
        upge.linear_logprobs(torch.ones(2, 2), weight, torch.zeros(2, dtype=torch.long))


def test_function_transforms_are_refused():
    hidden, weight, targets = torch.ones(N, D), torch.zeros(V, D), torch.zeros(N, dtype=torch.long)
    loss = lambda h: upge.fused_policy_loss(h, weight, targets, upge.SFT()).loss
    logprobs = lambda h: upge.linear_logprobs(h, weight, targets).logprobs
    weighted = lambda w: upge.fused_policy_loss(hidden, weight, targets, upge.SFT(), weights=w).loss
    for call in (
        lambda: torch.func.grad(loss)(hidden),
        lambda: torch.func.vmap(logprobs)(hidden[None]),
        lambda: torch.func.grad(weighted)(torch.ones(N)),
        lambda: torch.func.jvp(logprobs, (hidden,), (hidden,)),
    ):
        with pytest.raises(TypeError, match=r"(hidden|weights): .*torch.func|hidden: forward-mode"):
            call()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(hidden, hidden)
        with pytest.raises(TypeError, match="hidden: forward-mode differentiation"):
            logprobs(dual)


def test_triton_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(plan, "INTERPRETED", False)
    hidden, targets = torch.zeros(N, D), torch.zeros(N, dtype=torch.long)
    with pytest.raises(ValueError, match=r"backend: 'triton' needs tensors on a CUDA device.*got cpu; use 'torch'"):
        upge.linear_logprobs(hidden, torch.zeros(V, D), targets, backend="triton")
