"""prime-rl's head beside ours. It is not on PyPI: without it, a head of the same signature stands in for its own."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from upge.integrations import prime_rl

U = 2.0**-24  # unit roundoff of float32
WIDTH, VOCABULARY = 24, 101


class FusedOutputLinear(nn.Linear):
    """From logits, with prime-rl's arguments and results; a sampling mask names the tokens that could be sampled."""

    def __init__(self, in_features: int, out_features: int, chunk_size: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        labels: Tensor | None = None,
        temperature: Tensor | None = None,
        sampling_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        assert labels is not None, "FusedOutputLinear requires labels"
        assert temperature is not None, "FusedOutputLinear requires per-token temperatures"
        logits = super().forward(hidden_states).float() / temperature.unsqueeze(-1)
        every = logits.log_softmax(-1)
        total = logits if sampling_mask is None else logits.gather(-1, sampling_mask)
        logprobs = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - total.logsumexp(-1)
        return {"logprobs": logprobs, "entropy": -(every.exp() * every).sum(-1).detach()}


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> nn.Linear:
    try:
        from prime_rl.trainer.models.layers.lm_head import FusedOutputLinear as kind
    except ModuleNotFoundError:
        kind = FusedOutputLinear
        names = prime_rl.PEER.module.split(".")
        for end in range(1, len(names) + 1):
            monkeypatch.setitem(sys.modules, ".".join(names[:end]), ModuleType(names[end - 1]))
        sys.modules[prime_rl.PEER.module].FusedOutputLinear = kind
    monkeypatch.setattr(kind, "forward", kind.forward)
    torch.manual_seed(0)
    return kind(WIDTH, VOCABULARY, chunk_size=5)


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 9, WIDTH, generator=g).requires_grad_(),
        "labels": torch.randint(VOCABULARY, (2, 9), generator=g),
        "temperature": 0.5 + torch.rand(2, 9, generator=g),
    }


def step(head: nn.Linear, **more: Any) -> dict[str, Tensor]:
    head.zero_grad()
    inputs = batch()
    out = head(**inputs, **more)
    out["logprobs"].sin().sum().backward()
    return {name: value.detach() for name, value in out.items()} | {
        "dh": inputs["hidden_states"].grad,
        "dW": head.weight.grad,
    }


def test_results_are_those_of_prime_rl(head: nn.Linear) -> None:
    theirs = step(head)
    prime_rl.install()
    ours = step(head)
    assert ours.keys() == theirs.keys()
    # A logit is a sum of WIDTH products, of a size up to that of the logits; a result sums VOCABULARY of them.
    with torch.no_grad():
        size = float((batch()["hidden_states"].abs() @ head.weight.abs().T).max() / batch()["temperature"].min())
    for name, other in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (other.shape, other.dtype)
        assert (ours[name] - other).abs().max() <= 2 * (WIDTH + VOCABULARY) * U * max(size, 1.0), name


def test_only_what_upge_does_not_have_is_left_to_prime_rl(head: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.stack([batch()["labels"], torch.zeros(2, 9, dtype=torch.int64)], dim=-1)
    replayed = step(head, sampling_mask=mask)
    prime_rl.install()
    assert all(torch.equal(value, replayed[name]) for name, value in step(head, sampling_mask=mask).items())
    with pytest.raises(AssertionError, match="requires labels"):
        head(batch()["hidden_states"])
    monkeypatch.setattr(prime_rl, "linear_logprobs", None)
    with pytest.raises(TypeError):
        step(head)


def test_a_second_install_changes_nothing(head: nn.Linear) -> None:
    prime_rl.install()
    installed = type(head).forward
    prime_rl.install()
    assert type(head).forward is installed
