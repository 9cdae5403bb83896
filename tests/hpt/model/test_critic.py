"""GAE and the critic against their formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from hpt.config.recipe import build_config
from hpt.data.questions import Question
from hpt.method.advantage import gae
from hpt.method.experience import Experience
from hpt.method.micro_batches import MicroBatcher
from hpt.method.rows import Row, Signal
from hpt.model.critic import Critic, ValueModel
from hpt.optim.engines import make_optimizer_engine
from hpt.rollout import CriticValues, Rollout
from hpt.support.distributed import ALONE
from hpt.verify import Verdict


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
    optimizer = config.optimizer.model_copy(update={"lr": config.critic.lr})
    model = ValueModel(decoder)
    engine = make_optimizer_engine(model, config.model_copy(update={"optimizer": optimizer}), ALONE)
    return Critic(model, engine, config.critic, IN_BATCHES)


IN_BATCHES = MicroBatcher(20, packed=True, device=torch.device("cpu"))
RIGHT, WRONG = Verdict("correct", 1.0), Verdict("incorrect", 0.0)


def experiences() -> list[Experience]:
    first = [
        Rollout([8, 9, 1], [0.0] * 3, "stop", verdict=RIGHT),
        Rollout([10] * 6, [0.0] * 6, "length", verdict=WRONG),
    ]
    second = [Rollout([2], [0.0], "stop", verdict=RIGHT)]
    return [Experience(Question("a", "", ""), [3, 4, 5], first), Experience(Question("b", "", ""), [6, 7], second)]


def test_rollouts_are_judged_by_the_states_before_their_tokens() -> None:
    judge = critic()
    torch.nn.init.normal_(judge.model.head.weight)
    judged = experiences()
    judge.estimate_advantages(judged)
    raw, advantages = [], []
    for experience in judged:
        for rollout in experience.rollouts:
            states = judge.model.decoder(torch.tensor([experience.prompt + rollout.tokens])).last_hidden_state[0]
            expected = judge.model.head(states)[len(experience.prompt) - 1 : -1, 0].tolist()
            values = rollout.values
            assert values is not None
            assert values.before == pytest.approx(expected, abs=1e-5)
            estimate = gae(rollout.score, values.before, 1.0, 0.9)
            assert values.returns == pytest.approx([a + v for a, v in zip(estimate, values.before, strict=True)])
            raw += estimate
            assert isinstance(rollout.advantage, list)
            advantages += rollout.advantage
    flat = torch.tensor(advantages, dtype=torch.float64)
    expected = torch.tensor(raw, dtype=torch.float64)
    assert flat.tolist() == pytest.approx(
        ((expected - expected.mean()) / expected.std(correction=0)).tolist(), abs=1e-4
    )


def test_equal_estimates_give_no_advantage() -> None:
    """Nor a division by their standard deviation of 0."""
    alone = experiences()[1]
    critic().estimate_advantages([alone])
    assert alone.rollouts[0].advantage == [0.0]


def rows(before: float, returns: list[float]) -> list[Row]:
    values = CriticValues([before] * 3, returns[:3])
    short = Row([5, 8], 1, Signal.RL, 0.0, advantage=0.0, values=CriticValues([before], returns[3:]))
    return [Row([3, 4, 8, 9, 1], 2, Signal.RL, 0.1, values=values), short]  # the second has no signal for the policy


@pytest.mark.parametrize(("clip", "before"), [(None, 0.0), (0.2, 0.0), (0.2, 0.5)])
def test_the_value_loss_is_the_clipped_square_and_its_gradient(clip: float | None, before: float) -> None:
    learner = critic(clip=clip)
    torch.nn.init.normal_(learner.model.head.weight)
    trained = [replace(row, weight=1.0, advantage=1.0) for row in rows(before, [0.0] * 4)]
    v = torch.cat([learner.model(batch) for row in trained for batch in IN_BATCHES([row])])
    # Two values on the way to their returns, where the clip holds them back; two on the wrong side, where it does not.
    target = v.detach() + torch.tensor([1.0, -1.0, 1.0, -1.0]) * (v.detach() - before)
    held = v if clip is None else before + (v - before).clamp(-clip, clip)
    expected = (0.5 * torch.maximum((v - target) ** 2, (held - target) ** 2)).mean()
    assert (expected > (0.5 * (v - target) ** 2).mean()) == (clip is not None)
    expected.backward()
    norm = torch.cat([p.grad.flatten() for p in learner.model.parameters() if p.grad is not None]).norm().item()
    learner.model.zero_grad()
    loss, update = learner.learn(rows(before, target.tolist()))
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert update.grad_norm == pytest.approx(norm, rel=1e-4)


def test_it_starts_at_zero_and_learns() -> None:
    learner = critic(clip=None)
    judged = experiences()
    learner.estimate_advantages(judged)
    values = [rollout.values for experience in judged for rollout in experience.rollouts]
    assert all(value == 0 for own in values if own for value in own.before)
    assert None not in values
    losses = [learner.learn(rows(0.0, [1.0, -1.0, 0.3, 1.0]))[0] for _ in range(60)]
    assert losses[-1] < 0.1 * losses[0]
