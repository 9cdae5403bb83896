"""The plan of the Triton backend: its choices fit together, and what is computed does not depend on them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import upge
from upge.backends import plan as plans
from upge.backends import tuned
from upge.diagnosis.checks import poisoned_memory

pytest.importorskip("triton")
from upge.backends.triton import TritonWorkspace
from upge.inputs import HeadInputs, NeededGradients

CAPABILITIES = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize(("capability", "hidden", "weight"), product(CAPABILITIES, DTYPES, DTYPES))
def test_every_combination_of_choices_fits_together(monkeypatch, capability, hidden, weight):
    """Also those that tuning may make: E is whole tiles of every GEMM, and a chunk whole tiles of rows."""
    monkeypatch.setattr(plans, "INTERPRETED", False)
    for width, aligned in product((4096, 576, 80, 4095), (True, False)):
        plan = plans.plan_for(hidden, weight, capability, width, aligned=aligned)
        gemms = plans.choices(hidden, weight, capability)
        able = [[gemm for gemm in gemms[name] if gemm.takes(width, aligned)] for name in plans.GEMMS]
        assert plan.redo.kernel == "pointers"
        assert plan.redo.widths == 1
        for logits, dh, dw in product(*able):
            mixed = replace(plan, logits=logits, hidden=dh, weight=dw)
            for block in (dh.BK, dw.BM, plan.redo.BN):
                assert block == 0 or logits.BN % block == 0
            for rows in (logits.BM, dh.BM, dw.BK, plan.redo.BM, 4, 16):  # 4 and 16: ROWS and SUM_ROWS on a GPU
                assert mixed.granule % rows == 0
            if dh.kernel == "matmul":
                assert mixed.exps_dtype == mixed.weight_dtype == torch.bfloat16  # torch.mm has no mixed operands
            if dw.kernel == "descriptors":
                assert weight.itemsize == 2


def test_which_kernels_are_shipped(monkeypatch):
    monkeypatch.setattr(plans, "INTERPRETED", False)

    def kernels(dtype, capability, width, **options):
        plan = plans.plan_for(dtype, dtype, capability, width, **options)
        return {plan.logits.kernel, plan.hidden.kernel, plan.weight.kernel}

    for dtype in (torch.bfloat16, torch.float16):
        assert kernels(dtype, (9, 0), 3584) == {"descriptors"}
        assert kernels(dtype, (9, 0), 3584, aligned=False) == {"pointers"}
        assert kernels(dtype, (9, 0), 3592) == {"pointers"}
        assert kernels(dtype, (8, 0), 3584) == kernels(dtype, (10, 0), 3584) == {"pointers"}
    assert kernels(torch.float32, (9, 0), 3584) == {"pointers"}


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 2176, 2177, 16384, 17408, 17409])
def test_chunks_are_few_and_of_about_the_same_size(tokens):
    """At most as many as full chunks would be, and none shorter than another by more than a granule per chunk."""
    rows = plans.balanced(tokens, 2176, 128)
    sizes = [len(part) for part in torch.arange(tokens).split(rows)]
    assert rows % 128 == 0
    assert max(sizes) <= 2176
    assert len(sizes) == -(-tokens // 2176)
    assert max(sizes) - min(sizes) <= 128 * len(sizes)


@pytest.mark.parametrize("bad", [{"softcap": 2.0, "temperature": 0.7}, {}])
def test_nothing_reads_memory_that_was_not_written(problem, small_chunks, gemm_kernels, bad):
    """With NaN and the largest integers in all new memory: E, the sum of dW, padding of the last chunk."""
    p = problem(n=150, d=48, v=301, dtype=torch.bfloat16)
    options = {"entropy_coef": 0.1, **bad}
    whole, grads = p.loss(upge.GRPO(), "triton", **options)
    with poisoned_memory():
        assert torch.empty(1).isnan()
        again, poisoned = p.loss(upge.GRPO(), "triton", **options)
    assert torch.equal(again.loss, whole.loss)
    for a, b in zip(poisoned, grads, strict=True):
        assert torch.equal(a, b)


def test_no_chunk_at_all_gives_zeros(problem):
    """The sum of dW has no numbers before a chunk has begun it."""
    for dtype in DTYPES:
        p = problem(dtype=dtype)
        with poisoned_memory():
            _, grads = p.loss(upge.GRPO(), "triton", advantages=torch.zeros(150))
        assert not any(grad.any() for grad in grads)


def plan_of(p, dtype):
    inputs = HeadInputs(p.hidden.detach(), p.weight.detach(), p.targets)
    return TritonWorkspace(inputs, NeededGradients(True, True)).plan


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "upge" / "tuned.json"


def test_a_tuned_plan_replaces_the_shipped_one(problem, cache):
    """For the head, dtype and GPU that was tuned, and only with kernels that the plan has."""
    p = problem(n=150, d=48, dtype=torch.bfloat16)
    gemms = plans.choices(torch.bfloat16, torch.bfloat16, (0, 0))
    key = tuned.key_for(torch.device("cpu"), torch.bfloat16, 301, 48)
    best = {"logits": gemms["logits"][1], "hidden": gemms["hidden"][2], "weight": plans.Gemm("pointers", 7, 7, 7)}
    assert tuned.write(key, best) == cache
    shipped = plans.plan_for(torch.bfloat16, torch.bfloat16, (0, 0), 48)
    found = plan_of(p, torch.bfloat16)
    assert (found.logits, found.hidden, found.weight) == (best["logits"], best["hidden"], shipped.weight)
    for other in (problem(n=150, d=64, dtype=torch.bfloat16), problem(n=150, d=48), problem(d=48, v=300)):
        assert plan_of(other, None).logits == shipped.logits
    tuned.write("another", {"hidden": gemms["hidden"][1]})
    assert plan_of(p, torch.bfloat16) == found


@pytest.mark.parametrize("text", ["{", '{"a": {"logits": {"tile": 3}}}', "[]", '{"a": 3}'])
def test_a_tuned_file_that_cannot_be_read_is_a_warning(problem, cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    with pytest.warns(UserWarning, match=r"tuned\.json: cannot be read .* the shipped plan is used"):
        assert plan_of(problem(), torch.float32) == plans.plan_for(torch.float32, torch.float32, (0, 0), 24)


def test_a_user_without_a_home_has_the_shipped_plan(problem, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tuned.Path, "home", no_home)
    assert plan_of(problem(), torch.float32) == plans.plan_for(torch.float32, torch.float32, (0, 0), 24)


def test_dh_by_torch_mm(problem, cache, small_chunks):
    """The same numbers, and a token's dh has the same bits in another batch."""
    p = problem(n=150, d=48, dtype=torch.bfloat16)
    options = {"weights": torch.full((150,), 0.01), "mask": None, "rollout_logprobs": None}
    _, (want, *_) = p.loss(upge.GRPO(), "triton", **options)
    gemms = plans.choices(torch.bfloat16, torch.bfloat16, (0, 0))
    key = tuned.key_for(torch.device("cpu"), torch.bfloat16, 301, 48)
    tuned.write(key, {"hidden": next(gemm for gemm in gemms["hidden"] if gemm.kernel == "matmul")})
    _, (whole, *_) = p.loss(upge.GRPO(), "triton", **options)
    # Both have one rounding to bf16 of the same sums in another order.
    assert ((whole - want).abs() <= 2.0**-7 * want.abs() + 1e-6).all()
    rows = torch.tensor([149, 3, 70])
    p.inputs = {name: x[rows] for name, x in p.inputs.items()}
    p.hidden, p.targets = p.hidden.detach()[rows].requires_grad_(), p.targets[rows]
    _, (few, *_) = p.loss(upge.GRPO(), "triton", **options | {"weights": torch.full((3,), 0.01)})
    assert torch.equal(few, whole[rows])
