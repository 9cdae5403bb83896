"""AdamW in slices: the same bits as torch's and bitsandbytes' optimizers on float32 masters, with less memory."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hpt.optim import adamw
from hpt.optim.adamw import AdamW, join_master, split_master, stored_tensors
from hpt.support.errors import HptError

EDGES = [0x0000, 0x0001, 0x007F, 0x0080, 0x3F7F, 0x3F80, 0x3F81, 0x7F7E, 0x7F7F, 0x7F80]  # 0, subnormal, 1, max, inf
LOW = [0, 1, 0x7FFE, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF]


def masters(bits: list[int]) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def check_halves(master: torch.Tensor) -> None:
    weight, remainder = split_master(master)
    assert (weight.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(join_master(weight, remainder).view(torch.int32), master.view(torch.int32))
    cast = master.to(torch.bfloat16)
    tie = (master.view(torch.int32) & 0xFFFF) == 0x8000
    same = weight.view(torch.int16) == cast.view(torch.int16)
    assert (same | tie | master.isnan()).all()
    away = tie & ~master.isnan()
    assert (weight[away].float().abs() > master[away].abs()).all()


def test_halves_of_every_edge() -> None:
    """Zero, subnormals, powers of two, the largest number, infinity; with the remainders at which rounding changes."""
    edges = masters([(sign | high) << 16 | low for sign in (0, 0x8000) for high in EDGES for low in LOW])
    check_halves(edges)
    infinite = torch.tensor([torch.inf, -torch.inf])
    assert torch.equal(split_master(infinite)[0].float(), infinite)
    exact = torch.randn(1000).bfloat16()
    assert split_master(exact.float())[1].count_nonzero() == 0  # so with a remainder of 0 the master is the weight


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=64))
def test_halves_of_any_bits(bits: list[int]) -> None:
    check_halves(masters(bits))


SHAPES = [(70, 100), (5000,), (33,), ()]  # several slices; 4,096 and more; fewer; a scalar


def parameters(dtype: torch.dtype, seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients(step: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [parameter.detach() * 10.0 ** -(step % 4) for parameter in parameters(dtype, seed=step + 1)]


def make(start: list[torch.nn.Parameter], **options: Any) -> AdamW:
    return AdamW(start, weight_decay=0.1, **options)


def trained(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return optimizer.param_groups[0]["params"]


def stored(optimizer: AdamW) -> list[dict[str, torch.Tensor]]:
    return [stored_tensors(optimizer.state[parameter]) for parameter in trained(optimizer)]


def train(optimizer: AdamW, steps: range, dtype: torch.dtype, factor: float = 0.5) -> None:
    for step in steps:
        for parameter, gradient in zip(trained(optimizer), gradients(step, dtype), strict=True):
            parameter.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = 1e-3 / (step + 1)
        optimizer.step(gradient_factor=factor)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "SLICE", 1024)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_torchs_adamw_on_float32_masters(dtype: torch.dtype, offload: bool) -> None:
    ours = make(parameters(dtype), offload=offload)
    train(ours, range(20), dtype)
    exact = [torch.nn.Parameter(parameter.detach().float()) for parameter in parameters(dtype)]
    theirs = torch.optim.AdamW(exact, weight_decay=0.1, fused=True)
    for step in range(20):
        for master, gradient in zip(exact, gradients(step, dtype), strict=True):
            master.grad = gradient.float() * 0.5
        theirs.param_groups[0]["lr"] = 1e-3 / (step + 1)
        theirs.step()
    for parameter, state, master in zip(trained(ours), stored(ours), exact, strict=True):
        flat = parameter.detach().view(-1)
        if dtype == torch.bfloat16:
            assert torch.equal(join_master(flat, state["remainder"]), master.view(-1))
            assert torch.equal(flat, split_master(master.detach())[0].view(-1))
        else:
            assert torch.equal(parameter, master.to(dtype))
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[name], theirs.state[master][name].view(-1))


@pytest.mark.parametrize("offload", [False, True])
def test_8bit_states_are_bitsandbytes_own(offload: bool) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    ours = make(parameters(torch.float32), states="8bit", offload=offload)
    train(ours, range(10), torch.float32)
    exact = parameters(torch.float32)
    theirs = bitsandbytes.optim.AdamW8bit(exact, weight_decay=0.1)
    for step in range(10):
        for master, gradient in zip(exact, gradients(step, torch.float32), strict=True):
            master.grad = gradient * 0.5
        theirs.param_groups[0]["lr"] = 1e-3 / (step + 1)
        theirs.step()
    for parameter, state, master in zip(trained(ours), stored(ours), exact, strict=True):
        eight = parameter.numel() >= 4096
        assert state["exp_avg"].dtype == (torch.uint8 if eight else torch.float32)
        if eight:
            assert torch.equal(parameter, master)
            assert torch.equal(state["exp_avg_sq"], theirs.state[master]["state2"].view(-1))
        else:  # theirs divides in another order
            torch.testing.assert_close(parameter, master, rtol=1e-5, atol=1e-6)


def test_8bit_states_of_a_bfloat16_weight_keep_its_master() -> None:
    pytest.importorskip("bitsandbytes")
    ours = make(parameters(torch.bfloat16), states="8bit")
    train(ours, range(10), torch.bfloat16)
    starts = [parameter.detach().float() for parameter in parameters(torch.bfloat16)]
    exact = make([torch.nn.Parameter(start) for start in starts], states="8bit")
    for step in range(10):
        for master, gradient in zip(trained(exact), gradients(step, torch.bfloat16), strict=True):
            master.grad = gradient.float()
        exact.param_groups[0]["lr"] = 1e-3 / (step + 1)
        exact.step(gradient_factor=0.5)
    for parameter, state, master in zip(trained(ours), stored(ours), trained(exact), strict=True):
        assert torch.equal(join_master(parameter.detach().view(-1), state["remainder"]), master.view(-1))


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("states", ["float32", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saved_states_go_on_bit_exactly(dtype: torch.dtype, states: str, offload: bool) -> None:
    if states == "8bit":
        pytest.importorskip("bitsandbytes")
    whole = make(parameters(dtype), states=states, offload=offload)
    train(whole, range(6), dtype)
    first = make(parameters(dtype), states=states, offload=offload)
    train(first, range(3), dtype)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = make(copy.deepcopy(trained(first)), states=states, offload=offload)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, range(3, 6), dtype)
    for one, other in zip(trained(resumed), trained(whole), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(resumed.state.values(), whole.state.values(), strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].dtype == other[name].dtype for name in other)
        assert all(torch.equal(one[name], other[name]) for name in other)
    assert resumed.param_groups[0]["lr"] == whole.param_groups[0]["lr"]


def test_states_of_another_kind_are_refused() -> None:
    pytest.importorskip("bitsandbytes")
    saved = make(parameters(torch.bfloat16), states="8bit").state_dict()
    with pytest.raises(HptError, match=r"optimizer\.states"):
        make(parameters(torch.bfloat16)).load_state_dict(saved)


def test_the_state_of_an_earlier_version_is_refused_by_name() -> None:
    with pytest.raises(HptError, match="does not fit this run"):
        make(parameters(torch.bfloat16)).load_state_dict({"steps": 3, "kept": []})


class LargestResult(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in known:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_update_makes_nothing_larger_than_a_slice(dtype: torch.dtype) -> None:
    optimizer = make(parameters(dtype))
    for parameter, gradient in zip(trained(optimizer), gradients(0, dtype), strict=True):
        parameter.grad = gradient
    with LargestResult() as largest:
        optimizer.step(gradient_factor=0.5)
    assert largest.elements == 1024  # the slice; the first parameter has 7,000


def test_a_parameter_without_a_gradient_has_gradient_0() -> None:
    ours = make(parameters(torch.float32))
    ours.step()
    for parameter, start in zip(trained(ours), parameters(torch.float32), strict=True):
        assert torch.equal(parameter, start * (1 - 1e-3 * 0.1))


def test_parameter_groups_have_settings_of_their_own() -> None:
    """As in any torch optimizer; a group may be added later."""
    first, second = parameters(torch.bfloat16)[:1], parameters(torch.bfloat16)[1:2]
    ours = AdamW(first, lr=1e-2, weight_decay=0.0)
    ours.add_param_group({"params": second, "lr": 1e-3, "weight_decay": 0.5})
    exact = [torch.nn.Parameter(parameter.detach().float()) for parameter in (*first, *second)]
    groups = [{"params": exact[:1]}, {"params": exact[1:], "lr": 1e-3, "weight_decay": 0.5}]
    theirs = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0, fused=True)
    for step in range(3):
        for own, master, gradient in zip((*first, *second), exact, gradients(step, torch.bfloat16), strict=False):
            own.grad, master.grad = gradient, gradient.float()
        ours.step()
        theirs.step()
    for own, master in zip((*first, *second), exact, strict=True):
        assert torch.equal(join_master(own.detach().view(-1), ours.state[own]["remainder"]), master.view(-1))
