"""Rows, normalisers and layout: the gradient must not depend on how rows are split, packed or dropped."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import Decision
from hpt.method.micro_batches import MicroBatch, micro_batches, packed_batch, padded_batch
from hpt.method.rows import Row, Signal, token_rows
from hpt.model.policy import Policy
from hpt.rollout import CriticValues, Rollout
from hpt.support.errors import HptError

VOCABULARY = 31
SETTINGS = {
    "output": "o",
    "steps": 1,
    "model": {"path": "m"},
    "data": {"train": "t"},
    "rollout": {"n": 3, "max_tokens": 11},
}


def config(**sections: dict[str, object]) -> Config:
    return build_config(SETTINGS | sections, source="test")


def tiny_model(kind: str = "qwen2") -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    return Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))


def group(seed: int, alpha: float, beta: float, *, equal_scores: bool = False) -> Experience:
    draw = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=draw))
        return torch.randint(VOCABULARY, (length,), generator=draw).tolist()

    rollouts = [Rollout(response := tokens(1, 11), [-1.5] * len(response), "stop") for _ in range(3)]
    advantages = [0.0] * 3 if equal_scores else [0.7, 0.0, -0.7]
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        rollout.advantage = advantage
    question = Question(str(seed), "", "", "d")
    return Experience(question, tokens(2, 9), rollouts, Decision(alpha, beta, 0.0), tokens(4, 11))


def groups_with_sft(count: int, questions: int = 7) -> list[Experience]:
    return [group(seed, 0.0, 1.0) if seed < count else group(seed, 1.0, 0.0) for seed in range(questions)]


def gradient(model: PreTrainedModel, policy: Policy, batches: list[MicroBatch]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = policy.loss(batch).loss
        loss.backward()
        total += loss.item()
    return total, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def plain_loss(model: PreTrainedModel, groups: list[Experience], settings: Config) -> torch.Tensor:
    """The formulas of `token_rows`, row by row through full logits; nothing shared with the trainer."""

    def logprobs(prompt: list[int], response: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        every = torch.log_softmax(logits, -1)
        return every.gather(-1, torch.tensor(response)[:, None]).squeeze(-1), -(every.exp() * every).sum(-1)

    aggregation, coef = settings.loss.aggregation, settings.loss.entropy_coef
    rl_tokens = sum(len(r.tokens) for g in groups if g.decision.alpha for r in g.rollouts)
    sft_tokens = sum(len(g.demonstration) for g in groups if g.decision.beta)
    total = torch.zeros(())
    for g in groups:
        alpha, beta, _ = g.decision
        if alpha:
            for rollout in g.rollouts:
                advantage = rollout.advantage
                if advantage == 0:
                    continue
                l, entropy = logprobs(g.prompt, rollout.tokens)
                divisor = {
                    "sequence": len(groups) * len(g.rollouts) * len(rollout.tokens),
                    "constant": len(groups) * len(g.rollouts) * settings.rollout.max_tokens,
                    "token": rl_tokens,
                }[aggregation]
                total = total + alpha * settings.rl.coef * (-advantage * l - coef * entropy).sum() / divisor
        if beta:
            l, entropy = logprobs(g.prompt, g.demonstration)
            divisor = sft_tokens if aggregation == "token" else len(groups) * len(g.demonstration)
            total = total + beta * settings.sft.coef * (-l - coef * entropy).sum() / divisor
    return total


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# Sums of some thousand float32 terms in another order; float32 rounds at 6e-8.
TOLERANCE = 2e-5


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
@pytest.mark.parametrize("sft_questions", range(8))
def test_the_gradient_is_the_papers_however_it_is_batched(aggregation: str, sft_questions: int) -> None:
    settings = config(
        loss={"aggregation": aggregation, "entropy_coef": 0.01},
        sft={"coef": 0.3},
        rl={"coef": 1.7, "objective": "GRPO"},
    )
    groups = groups_with_sft(sft_questions)
    model = tiny_model()
    policy = Policy(model, settings)
    rows = token_rows(groups, settings)
    useful = [row for row in rows if row.has_signal]
    model.zero_grad()
    reference_loss = plain_loss(model, groups, settings)
    reference_loss.backward()
    reference = torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])
    splits = {
        "one": [padded_batch(useful)],
        "two": [padded_batch(useful[::2]), padded_batch(useful[1::2])],
        "seven": [padded_batch(useful[part::7]) for part in range(7)],
        "packed": [packed_batch(useful)],
        "packed in budget": micro_batches(useful, 40, packed=True),
        "padded in budget": micro_batches(useful, 60, packed=False),
    }
    for name, batches in splits.items():
        loss, grad = gradient(model, policy, batches)
        assert relative(grad, reference) < TOLERANCE, name
        assert loss == pytest.approx(reference_loss.item(), abs=1e-4), (
            name
        )  # GRPO's on-policy value differs by sum(w A)


def test_rows_without_signal_change_nothing_when_they_are_sent_along() -> None:
    settings = config()
    groups = [group(0, 1.0, 0.0), group(1, 1.0, 0.0, equal_scores=True), group(2, 0.0, 1.0), group(3, 0.5, 0.5)]
    rows = token_rows(groups, settings)
    useful = [row for row in rows if row.has_signal]
    assert len(rows) == 3 + 3 + 1 + 4
    assert len(useful) == 2 + 0 + 1 + 3  # one advantage of each group is 0
    model = tiny_model()
    policy = Policy(model, settings)
    _, without = gradient(model, policy, [padded_batch(useful)])
    _, along = gradient(model, policy, [padded_batch(rows)])
    assert relative(along, without) < TOLERANCE


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_off_policy_rows_share_the_normaliser_of_rollouts(aggregation: str, joins: bool) -> None:
    settings = config(
        loss={"aggregation": aggregation},
        gate={"kind": "both"},
        sft={"coef": 0.25},
        off_policy={"coef": 2.0, "advantage": "mean" if joins else "one"},
    )
    groups = [group(seed, 1.0, 1.0) for seed in (0, 1)]
    for experience in groups:
        experience.decision = Decision(1.0, 1.0, 0.5)
        experience.demonstration_advantage = 0.3
    rows = token_rows(groups, settings)
    assert [row.signal for row in rows] == [Signal.RL, Signal.RL, Signal.RL, Signal.SFT, Signal.OFF_POLICY] * 2
    demonstrated = sum(len(g.demonstration) for g in groups)
    sampled = sum(len(r.tokens) for g in groups for r in g.rollouts)
    for row in rows:
        length = 11 if aggregation == "constant" and row.signal != Signal.SFT else row.response_length
        members = {Signal.RL: 3 + joins, Signal.SFT: 1, Signal.OFF_POLICY: 4 if joins else 1}[row.signal]
        count = 2 * members * length
        if aggregation == "token":
            count = demonstrated if row.signal == Signal.SFT else sampled + demonstrated
        share = {Signal.RL: 1.0, Signal.SFT: 0.25, Signal.OFF_POLICY: 0.5 * 2.0}[row.signal]
        assert row.weight == pytest.approx(share / count)
        assert row.signal != Signal.OFF_POLICY or row.advantage == 0.3


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_packed_rows_do_not_see_each_other(kind: str) -> None:
    model = tiny_model(kind)
    policy = Policy(model, config())
    rows = [row for row in token_rows(groups_with_sft(3), config()) if row.has_signal]
    alone = torch.cat([policy.logprobs(padded_batch([row])) for row in rows])
    model.train()
    assert torch.allclose(policy.logprobs(packed_batch(rows)), alone, atol=1e-5)
    assert torch.allclose(policy.logprobs(padded_batch(rows)), alone, atol=1e-5)


def test_targets_are_exactly_the_response_tokens() -> None:
    rows = [
        Row([3, 4, 5, 6, 7], 2, Signal.RL, 0.5, advantage=-2.0, rollout_logprobs=[-1.0, -2.0, -3.0]),
        Row([8, 9], 1, Signal.SFT, 0.25),
    ]
    for batch in (padded_batch(rows), packed_batch(rows)):
        assert batch.targets.tolist() == [5, 6, 7, 9]
        flat = batch.input_ids.flatten()
        assert flat[batch.positions].tolist() == [4, 5, 6, 8]  # the token before each target
        assert flat[batch.positions + 1].tolist() == [5, 6, 7, 9]
        assert batch.objective_index.tolist() == [Signal.RL, Signal.RL, Signal.RL, Signal.SFT]
        assert batch.weights.tolist() == [0.5, 0.5, 0.5, 0.25]
        assert batch.advantages[:3].tolist() == [-2.0] * 3
        assert batch.rollout_logprobs[:3].tolist() == [-1.0, -2.0, -3.0]
        assert batch.rollout_logprobs[3].isnan()


def test_a_rollouts_row_has_what_the_engine_and_the_critic_said_of_it() -> None:
    values = CriticValues(before=[0.1, 0.2], returns=[0.3, 0.4])
    rollout = Rollout([5, 6], [-1.0, -2.0], "stop", advantage=[0.2, 0.2], values=values)
    experience = Experience(Question("q", "p", "a"), [3, 4], [rollout], Decision(alpha=1.0, beta=0.0, off=0.0))
    (row,) = token_rows([experience], config(loss={"kl_coef": 0.1}))
    expected = Row([3, 4, 5, 6], 2, Signal.RL, 0.5, [0.2, 0.2], [-1.0, -2.0], values=values, regularised=True)
    assert row == expected
    for coefficient, regularised in ((0.0, False), (0.1, True)):
        (row,) = token_rows([experience], config(loss={"aggregation": "official", "entropy_coef": coefficient}))
        assert row.regularised == regularised


@pytest.mark.parametrize("packed", [False, True])
def test_micro_batches_hold_every_row_once_within_the_budget(packed: bool) -> None:
    rows = [row for row in token_rows(groups_with_sft(3), config()) if row.has_signal]
    for budget in (1, 20, 45, 10_000):
        batches = micro_batches(rows, budget, packed=packed)
        assert sorted(map(id, rows)) == sorted(id(row) for batch in batches for row in batch.rows)
        assert all(batch.input_ids.numel() <= budget or len(batch.rows) == 1 for batch in batches)
    assert micro_batches([], 10, packed=packed) == []


def test_several_updates_use_the_log_probabilities_from_before_the_first() -> None:
    settings = config(rl={"objective": "GRPO"}, batch={"questions": 4, "updates": 2})
    model = tiny_model()
    policy = Policy(model, settings)
    assert policy.needs_old_logprobs
    rows = [row for row in token_rows(groups_with_sft(0), settings) if row.has_signal]
    old = policy.logprobs(padded_batch(rows)).split([row.response_length for row in rows])
    for row, values in zip(rows, old, strict=True):
        row.old_logprobs = values.tolist()
    before = policy.loss(padded_batch(rows))
    assert torch.equal(before.ratio, torch.ones_like(before.ratio))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = policy.loss(padded_batch(rows))
    assert (after.ratio - 1).abs().max() > 0.2
    assert not after.stable.all()


def test_a_scaled_head_is_refused() -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    model = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            logits_scaling=8.0,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    with pytest.raises(HptError, match="GraniteForCausalLM"):
        Policy(model, config())


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight"])
def test_a_model_whose_logits_are_nan_is_refused(name: str) -> None:
    model = tiny_model("llama")
    model.get_parameter(name).data.fill_(float("nan"))
    with pytest.raises(HptError, match=r"logits of LlamaForCausalLM are not finite"):
        Policy(model, config())
