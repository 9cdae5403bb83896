"""torch.compile around the loss: one graph, and the same bits as eager calls."""

from __future__ import annotations

import copy

import pytest
import torch
import upge
from upge import compiled


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def step(p, backend):
    """The last layers of a model, as a training step calls them."""

    def run(hidden, weight, advantages, old):
        x = torch.tanh(hidden)
        index = (torch.arange(x.shape[0]) % 2).int()
        out = upge.fused_policy_loss(
            x, weight, p.targets, [upge.GRPO(clip_high=0.3), upge.SFT()], objective_index=index, advantages=advantages,
            old_logprobs=old, bias=p.bias, entropy_coef=0.1, temperature=0.9, backend=backend,
        )  # fmt: skip
        logprobs = upge.linear_logprobs(x, weight, p.targets, entropy=True, backend=backend)
        return 2 * out.loss + logprobs.logprobs.mean() + logprobs.entropy.mean(), out.ratio, out.stable

    return run


def test_one_graph_with_the_eager_numbers(problem, backend):
    p = problem()
    inputs = p.hidden, p.weight, p.inputs["advantages"], p.inputs["old_logprobs"]
    eager = step(p, backend)
    graph = torch.compile(eager, fullgraph=True, backend="aot_eager")
    want, got = eager(*inputs), graph(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    grads, want_grads = (torch.autograd.grad(x[0], p.leaves) for x in (got, want))
    for a, b in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(graph(*inputs)[0], eager(*inputs)[0])
    with torch.no_grad():
        assert torch.equal(graph(*inputs)[0], want[0])


def test_ops_are_well_formed(problem):
    """PyTorch's own check of schema, fake shapes and autograd registration."""
    p = problem(n=9)
    head = (p.hidden, p.weight, p.targets, p.bias, 1.0, None, None)
    counted = p.inputs["mask"]
    torch.library.opcheck(torch.ops.upge.linear_logprobs.default, (*head, counted, [True, True], [True] * 3, "torch"))
    objective = upge.GRPO()
    given = {"mask": counted, "advantages": p.inputs["advantages"], "old_logprobs": p.inputs["old_logprobs"]}
    tokens = [given.get(name) for name in compiled.TOKEN_FIELDS]
    formula = ("token", "clip", 2.0, None, "k3", 20.0, "needed")
    rest = (tokens, [objective.key], *formula, [True, False, True], "torch")
    frozen = (p.hidden, p.weight.detach(), *head[2:])
    torch.library.opcheck(
        torch.ops.upge.policy_loss.default, (*frozen, *rest), test_utils=("test_schema", "test_faketensor")
    )


def test_settings_may_change_from_step_to_step(problem):
    p = problem(n=9)

    def step(hidden, objective, entropy_coef, kl_coef, temperature, tis_clip):
        return upge.fused_policy_loss(
            hidden, p.weight, p.targets, objective, entropy_coef=entropy_coef, kl_coef=kl_coef,
            temperature=temperature, tis_clip=tis_clip, **p.inputs,
        ).loss  # fmt: skip

    graph = torch.compile(step, fullgraph=True, backend="aot_eager")
    for objective in (upge.GRPO(), copy.deepcopy(upge.GRPO(clip_high=0.01))):
        for scale in (0.1, 0.2, 0.3):
            settings = objective, scale, scale, 1 + scale, 1 + scale
            assert torch.equal(graph(p.hidden, *settings), step(p.hidden, *settings))


def test_a_function_breaks_the_graph_and_says_why(problem):
    p = problem(n=9)
    own = upge.Objective.from_function(lambda l, b: -(l - b.old_logprobs).exp() * b.advantages)
    step = lambda h: upge.fused_policy_loss(2 * h, p.weight, p.targets, own, temperature=0.5, **p.inputs).loss
    loss, want = torch.compile(step, backend="aot_eager")(p.hidden), step(p.hidden)
    assert torch.equal(loss, want)
    for a, b in zip(*(torch.autograd.grad(x, [p.hidden, p.weight]) for x in (loss, want)), strict=True):
        assert torch.equal(a, b)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="a user-defined objective needs autograd"):
        torch.compile(step, fullgraph=True, backend="aot_eager")(p.hidden)


def test_the_reference_is_not_compiled(problem):
    p = problem(n=9)
    call = lambda h: upge.fused_policy_loss(h, p.weight, p.targets, upge.SFT(), backend="reference").loss
    with pytest.raises(ValueError, match="'reference' is plain autograd"):
        torch.compile(call, fullgraph=True, backend="aot_eager")(p.hidden)


def test_an_objective_is_built_outside_the_graph(problem):
    p = problem(n=9)

    def step(h):
        own = upge.Objective(upge.Clip(0.2, 0.2), "rollout", likelihood="ratio")
        return upge.fused_policy_loss(h, p.weight, p.targets, own, **p.inputs).loss

    assert torch.equal(torch.compile(step, backend="aot_eager")(p.hidden), step(p.hidden))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"build upge.Objective\(...\) outside"):
        torch.compile(step, fullgraph=True, backend="aot_eager")(p.hidden)


@pytest.mark.parametrize("name", ["evaluate", "tis", "kl", "coefficients", "logprobs"])
def test_options_reach_the_compiled_op(name, problem):
    p = problem(n=40)
    x = p.inputs | {"advantages": p.inputs["advantages"] * (torch.arange(40) % 2)}
    options = {
        "evaluate": {"evaluate": "all"},
        "tis": {"tis": "sequence", "tis_mode": "mask", "tis_clip": 1.5, "tis_min": 0.5},
        "kl": {"kl": "k3_ratio", "kl_coef": 0.3, "max_log_ratio": 0.4},
        "coefficients": {"kl_coef": torch.rand(40), "entropy_coef": torch.rand(40), "lse_coef": torch.rand(40)},
        "logprobs": {},
    }[name]

    def step(h):
        if name != "logprobs":
            out = upge.fused_policy_loss(h, p.weight, p.targets, upge.GRPO(), logit_scale=0.5, **x, **options)
            return out.loss, *out[1:]
        out = upge.linear_logprobs(h, p.weight, p.targets, mask=x["mask"], lse=True, top1=True, softcap=3.0)
        return (out.logprobs + 2 * out.lse).sum(), out.logprobs, out.top1

    got, want = torch.compile(step, fullgraph=True, backend="aot_eager")(p.hidden), step(p.hidden)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    grads = [torch.autograd.grad(x[0], [p.hidden, p.weight]) for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=0)
