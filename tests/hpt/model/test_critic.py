"""GAE and the critic against their formulas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from hpt.config.recipe import build_config
from hpt.method.advantage import gae
from hpt.method.rows import RL, MicroBatch, Row, Values, micro_batches
from hpt.model.critic import Critic
from hpt.rollout import Rollout


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (1.0, 0.0)])
def test_gae_is_the_weighted_sum_of_later_errors(gamma: float, lam: float) -> None:
    values, score = [0.3, -0.2, 0.7, 0.1], 1.0
    after = [*values[1:], 0.0]
    rewards = [0.0, 0.0, 0.0, score]
    errors = [reward + gamma * later - value for reward, later, value in zip(rewards, after, values, strict=True)]
    expected = [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, 4)) for t in range(4)]
    assert gae(score, values, gamma, lam) == pytest.approx(expected, abs=1e-12)
    if gamma == lam == 1:
        assert gae(score, values, 1.0, 1.0) == pytest.approx([score - value for value in values])


def critic(**settings: Any) -> Critic:
    torch.manual_seed(0)
    decoder = Qwen2Model(
        Qwen2Config(
            vocab_size=23,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    base = {"output": "o", "steps": 9, "model": {"path": "m"}, "data": {"train": "t"}, "gate": {"kind": "rl"}}
    config = build_config(
        base | {"rl": {"advantage": "gae"}, "critic": {"lr": 1e-2, "lam": 0.9} | settings}, source="test"
    )
    return Critic(decoder, config)


def in_batches(rows: Sequence[Row]) -> Iterator[MicroBatch]:
    yield from micro_batches([row for row in rows if row.has_signal], 20, packed=True)


PROMPTS = [[3, 4, 5], [6, 7]]
ROLLOUTS = [
    [Rollout([8, 9, 1], [0.0] * 3, "stop"), Rollout([10] * 6, [0.0] * 6, "length")],
    [Rollout([2], [0.0], "stop")],
]
SCORES = [[1.0, 0.0], [1.0]]


def test_rollouts_are_judged_by_the_states_before_their_tokens() -> None:
    judge = critic()
    torch.nn.init.normal_(judge.model.head.weight)
    advantages, values = judge.judge(PROMPTS, ROLLOUTS, SCORES, in_batches)
    raw = []
    for q, group in enumerate(ROLLOUTS):
        for i, rollout in enumerate(group):
            states = judge.model.decoder(torch.tensor([PROMPTS[q] + rollout.tokens])).last_hidden_state[0]
            expected = judge.model.head(states)[len(PROMPTS[q]) - 1 : -1, 0].tolist()
            assert values[q][i].before == pytest.approx(expected, abs=1e-5)
            estimate = gae(SCORES[q][i], values[q][i].before, 1.0, 0.9)
            assert values[q][i].returns == pytest.approx(
                [a + v for a, v in zip(estimate, values[q][i].before, strict=True)]
            )
            raw += estimate
    flat = torch.tensor([value for group in advantages for own in group for value in own], dtype=torch.float64)
    expected = torch.tensor(raw, dtype=torch.float64)
    assert flat.tolist() == pytest.approx(
        ((expected - expected.mean()) / expected.std(correction=0)).tolist(), abs=1e-4
    )


def rows(before: float, returns: list[float]) -> list[Row]:
    values = Values([before] * 3, returns[:3])
    short = Row([5, 8], 1, RL, 0.0, advantage=0.0, values=Values([before], returns[3:]))
    return [Row([3, 4, 8, 9, 1], 2, RL, 0.1, values=values), short]  # the second has no signal for the policy


@pytest.mark.parametrize(("clip", "before"), [(None, 0.0), (0.2, 0.0), (0.2, 0.5)])
def test_the_value_loss_is_the_clipped_square_and_its_gradient(clip: float | None, before: float) -> None:
    learner = critic(clip=clip)
    torch.nn.init.normal_(learner.model.head.weight)
    trained = [replace(row, weight=1.0, advantage=1.0) for row in rows(before, [0.0] * 4)]
    v = torch.cat([learner.model(batch) for row in trained for batch in in_batches([row])])
    # Two values on the way to their returns, where the clip holds them back; two on the wrong side, where it does not.
    target = v.detach() + torch.tensor([1.0, -1.0, 1.0, -1.0]) * (v.detach() - before)
    held = v if clip is None else before + (v - before).clamp(-clip, clip)
    expected = (0.5 * torch.maximum((v - target) ** 2, (held - target) ** 2)).mean()
    assert (expected > (0.5 * (v - target) ** 2).mean()) == (clip is not None)
    expected.backward()
    norm = torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None]).norm().item()
    learner.model.zero_grad()
    loss, update = learner.learn(rows(before, target.tolist()), in_batches)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert update.grad_norm == pytest.approx(norm, rel=1e-4)


def test_it_starts_at_zero_and_learns() -> None:
    learner = critic(clip=None)
    _, values = learner.judge(PROMPTS, ROLLOUTS, SCORES, in_batches)
    assert all(value == 0 for group in values for own in group for value in own.before)
    losses = [learner.learn(rows(0.0, [1.0, -1.0, 0.3, 1.0]), in_batches)[0] for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
