"""Coefficients and gradients of hpt, grpo, luffy and srft against their published formulas, through full logits.

The formulas are written out below with autograd, from scores and tokens alone. The trainer under test runs whole, with
fixed rollouts, scores and demonstrations in place of an engine, a verifier and a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from hpt.config.recipe import METHODS, build_config, merge, read_method
from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.method.micro_batches import MicroBatch, MicroBatcher
from hpt.method.rows import Signal
from hpt.model.policy import Policy
from hpt.optim.engine import Update
from hpt.rollout import Rollout, RolloutEngine, Sampling
from hpt.rollout.engine import OnRollout
from hpt.training.assemble import make_trainer
from hpt.verify import Verdict

VOCABULARY, MAX_TOKENS, ENTROPY = 29, 12, 0.001
SCORES = [[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]]  # none, some and all right
SIGNALS = {"rollout": Signal.RL, "sft": Signal.SFT, "off": Signal.OFF_POLICY}
# Float32 sums of some hundred terms in another order; float32 rounds at 6e-8.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Item:
    """A term of a formula: one sequence in one role."""

    question: int
    role: str  # rollout, sft or off
    prompt: list[int]
    response: list[int]
    score: float  # 1 of a demonstration
    group: list[float]  # all scores of the question's group


def draw(seed: int, low: int, high: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    length = int(torch.randint(low, high, (), generator=generator))
    return torch.randint(VOCABULARY, (length,), generator=generator).tolist()


PROMPTS = [draw(100 + q, 2, 7) for q in range(len(SCORES))]
DEMONSTRATIONS = [draw(200 + q, 3, 12) for q in range(len(SCORES))]
RESPONSES = [[draw(300 + 10 * q + i, 3, 12) for i in range(4)] for q in range(len(SCORES))]


def items_of(method: str) -> list[Item]:
    """Who is trained on in which role, by the methods' papers."""
    found = []
    for q, scores in enumerate(SCORES):
        joins = method in ("luffy", "srft")  # the demonstration is one of the group
        count = 3 if joins else 4
        own = [float(score) for score in scores[:count]]
        group = [*own, 1.0] if joins else own
        offline = method == "hpt" and sum(own) == 0
        if not offline:
            found += [Item(q, "rollout", PROMPTS[q], RESPONSES[q][i], own[i], group) for i in range(count)]
        for role in {"hpt": ["sft"] * offline, "luffy": ["off"], "srft": ["sft", "off"]}.get(method, []):
            found.append(Item(q, role, PROMPTS[q], DEMONSTRATIONS[q], 1.0, group))
    return found


def full_logits(model: PreTrainedModel, item: Item) -> tuple[torch.Tensor, torch.Tensor]:
    """(log pi of the response tokens, entropies), each (T,)."""
    logits = model(torch.tensor([item.prompt + item.response]), use_cache=False).logits[0, len(item.prompt) - 1 : -1]
    every = torch.log_softmax(logits, -1)
    return every.gather(-1, torch.tensor(item.response)[:, None]).squeeze(-1), -(every.exp() * every).sum(-1)


def surrogate(method: str, item: Item, l: torch.Tensor, mean_entropy: float) -> torch.Tensor:
    """(T,) the published loss of each token, before any normaliser."""
    group = torch.tensor(item.group)
    centred = item.score - group.mean()
    if item.role == "sft":
        weight = 0.5 * torch.exp(torch.tensor(-mean_entropy)) if method == "srft" else 1.0
        return -weight * l
    if item.role == "off":
        pi = l.exp()
        return -centred * (pi / (pi + 0.1) if method == "luffy" else pi)
    if method == "srft":
        signed = 0.1 * torch.exp(torch.tensor(mean_entropy)) if item.score == 1 else -1.0
        return -signed * l
    r = (l - l.detach()).exp()
    if method == "grpo":
        a = centred / (group.std() + 1e-6) if centred != 0 else centred
        return -torch.minimum(r * a, r.clamp(0.8, 1.2) * a)
    return -centred * r


def official_loss(method: str, parts: Sequence[Sequence[Item]], l: dict, entropy: dict) -> torch.Tensor:
    """Micro-batch by micro-batch: sum_RL / 8192 + token mean of SFT - 0.001 x token mean of all entropies."""
    total = torch.zeros(())
    for part in parts:
        tokens = {role: sum(len(i.response) for i in part if i.role in role) for role in ("sft", "rollout sft off")}
        for item in part:
            h = entropy[id(item)]
            normaliser = tokens["sft"] if item.role == "sft" else MAX_TOKENS
            total = total + surrogate(method, item, l[id(item)], h.mean().item()).sum() / normaliser
            total = total - ENTROPY * h.sum() / tokens["rollout sft off"]
    return total


def corrected_loss(method: str, items: Sequence[Item], l: dict, entropy: dict) -> torch.Tensor:
    """Mean over questions of the mean over the group of the mean over tokens; SFT beside the group."""
    total = torch.zeros(())
    for item in items:
        members = 1 if item.role == "sft" else len(item.group)
        mean = surrogate(method, item, l[id(item)], entropy[id(item)].mean().item()).mean()
        total = total + mean / members / len(SCORES)
    return total


# ---- the trainer under test


class FixedRollouts(RolloutEngine):
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        assert on_rollout is not None
        groups = [
            [Rollout(tokens, [-1.0] * len(tokens), "stop") for tokens in RESPONSES[PROMPTS.index(prompt)][: sampling.n]]
            for prompt in map(list, prompts)
        ]
        for index, group in enumerate(groups):
            for place, rollout in enumerate(group):
                on_rollout(index, place, rollout)
        return groups


class FixedScores:
    """A verifier and its scoring in one; a question's answer is its number."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int], Verdict] = {}

    def scoring(self) -> AbstractContextManager[FixedScores]:
        return nullcontext(self)

    def add(self, key: tuple[int, int], response: str, answer: str) -> None:
        value = SCORES[int(answer)][key[1]]
        self.found[key] = Verdict("correct" if value else "incorrect", float(value))

    def verdicts(self) -> dict[tuple[int, int], Verdict]:
        return self.found


class FixedTokens:
    """A renderer and its tokenizer in one."""

    @property
    def tokenizer(self) -> FixedTokens:
        return self

    def encode_prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        return [PROMPTS[int(question.id)] for question in questions]

    def demonstration_ids(self, question: Question) -> list[int]:
        return DEMONSTRATIONS[int(question.id)]

    def decode(self, tokens: list[int], **options: Any) -> str:
        return ""


class Gradients:
    """An engine that keeps the gradient and moves nothing."""

    kind = "local"
    min_micro_batches = 0

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> Update:
        return Update(0.0, 0.0, False)

    def end_step(self) -> None:
        pass


def tiny_model() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(shape)
    with torch.no_grad():
        model.lm_head.weight.mul_(15)  # probabilities from 1e-4 to 0.5, and entropies that differ
    return model


def settings(method: str, **sections: Any) -> Config:
    base: dict[str, Any] = {"output": "o", "steps": 1, "model": {"path": "m"}, "data": {"train": "t"}}
    merge(base, read_method(METHODS / f"{method}.yaml"))
    merge(base, {"rollout": {"n": 4, "max_tokens": MAX_TOKENS}, "batch": {"questions": len(SCORES)}} | sections)
    return build_config(base, source="test")


def trained(model: PreTrainedModel, config: Config) -> tuple[torch.Tensor, list[MicroBatch], dict]:
    """(gradient, micro-batches, coefficients by tokens and signal) of one step."""
    policy = Policy(model, config)
    batches, coefficients, compute = [], {}, policy.loss

    def recording(batch: MicroBatch) -> Any:
        output = compute(batch)
        batches.append(batch)
        parts = output.coefficient.split([row.response_length for row in batch.rows])
        coefficients.update({(tuple(r.tokens), r.signal): part for r, part in zip(batch.rows, parts, strict=True)})
        return output

    policy.loss = recording  # type: ignore[method-assign]
    questions = [Question(str(q), "", str(q), "", None) for q in range(len(SCORES))]
    renderer: Any = FixedTokens()
    verifier: Any = FixedScores()
    engine: Any = Gradients()
    micro_batches = MicroBatcher(config.batch.tokens, packed=False, device=torch.device("cpu"))
    trainer = make_trainer(
        config,
        questions=questions,
        held_out=[],
        renderer=renderer,
        rollout_engine=FixedRollouts(),
        verifier=verifier,
        policy=policy,
        engine=engine,
        micro_batches=micro_batches,
    )
    model.zero_grad()
    trainer.step(1)
    return torch.cat([p.grad.flatten().clone() for p in model.parameters()]), batches, coefficients


def check(method: str, model: PreTrainedModel, config: Config, *, official: bool) -> int:
    gradient, batches, coefficients = trained(model, config)
    items = items_of(method)
    by_key = {(tuple(item.prompt + item.response), SIGNALS[item.role]): item for item in items}
    assert coefficients.keys() <= by_key.keys()
    parts = [[by_key[tuple(row.tokens), row.signal] for row in batch.rows] for batch in batches]

    def loss(l: dict, entropy: dict) -> torch.Tensor:
        if official:
            assert sum(map(len, parts)) == len(items)  # with the entropy bonus, all-solved groups are trained on too
            return official_loss(method, parts, l, entropy)
        return corrected_loss(method, items, l, entropy)

    model.zero_grad()
    values = {id(item): full_logits(model, item) for item in items}
    l = {key: pair[0] for key, pair in values.items()}
    entropy = {key: pair[1] for key, pair in values.items()}
    loss(l, entropy).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (gradient - expected).norm() < TOLERANCE * expected.norm()

    leaves = {key: value.detach().requires_grad_() for key, value in l.items()}
    without_entropy = loss(leaves, {key: value.detach() for key, value in entropy.items()})
    for item, g in zip(items, torch.autograd.grad(without_entropy, [leaves[id(i)] for i in items]), strict=True):
        found = coefficients.get((tuple(item.prompt + item.response), SIGNALS[item.role]), torch.zeros_like(g))
        assert torch.allclose(found, g, rtol=2e-5, atol=1e-9), (item.question, item.role)
    return len(batches)


@pytest.mark.parametrize("tokens", [1000, 60])
@pytest.mark.parametrize("method", ["hpt", "grpo", "luffy", "srft"])
def test_official_aggregation_is_the_published_codes(method: str, tokens: int) -> None:
    config = settings(
        method,
        loss={"aggregation": "official", "entropy_coef": ENTROPY},
        batch={"questions": len(SCORES), "tokens": tokens},
    )
    assert (check(method, tiny_model(), config, official=True) > 1) == (tokens == 60)


@pytest.mark.parametrize("tokens", [1000, 60])
@pytest.mark.parametrize("method", ["hpt", "grpo", "luffy", "srft"])
def test_the_default_aggregation_is_the_corrected_formula(method: str, tokens: int) -> None:
    config = settings(method, batch={"questions": len(SCORES), "tokens": tokens})
    assert config.loss.aggregation == "sequence"
    assert (check(method, tiny_model(), config, official=False) > 1) == (tokens == 60)


def test_only_the_official_aggregation_depends_on_the_micro_batches() -> None:
    model = tiny_model()
    change = {}
    for aggregation in ("sequence", "token", "constant", "official"):
        sections: dict[str, Any] = {
            "loss": {"aggregation": aggregation, "entropy_coef": ENTROPY},
            "gate": {"gamma": 2},  # so that several questions go to SFT
        }
        one, many = (
            trained(model, settings("hpt", batch={"questions": len(SCORES), "tokens": tokens}, **sections))[0]
            for tokens in (1000, 20)
        )
        change[aggregation] = ((one - many).norm() / one.norm()).item()
    assert change.pop("official") > 0.1
    assert max(change.values()) < TOLERANCE
