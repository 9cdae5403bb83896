"""Coefficients and gradients of methods against their published formulas, through full logits.

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
from hpt.support.distributed import ALONE, World
from hpt.training.assemble import make_trainer
from hpt.verify import Verdict

VOCABULARY, MAX_TOKENS, ENTROPY = 29, 12, 0.1
SCORES = [[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 1, 0]]  # none, some and all right
SIGNALS = {"rollout": Signal.RL, "sft": Signal.SFT, "off": Signal.OFF_POLICY}
# Float32 sums of some hundred terms in another order; float32 rounds at 6e-8.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Item:
    """One sequence, as the published code has it in its batch."""

    roles: list[str]  # rollout, or one or both of sft and off
    prompt: list[int]
    response: list[int]
    score: float  # 1 of a demonstration
    group: list[float]  # all scores of the group that it belongs to

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt, *self.response)


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
        offline = method in ("hpt", "hpt-mix") and sum(own) == 0
        if not offline:
            found += [Item(["rollout"], PROMPTS[q], RESPONSES[q][i], own[i], group) for i in range(count)]
        both = ["sft", "off"]
        roles = {"hpt": ["sft"] * offline, "hpt-mix": both * offline, "luffy": ["off"], "srft": both}
        if roles.get(method):
            members = group if joins else [1.0]
            found.append(Item(roles[method], PROMPTS[q], DEMONSTRATIONS[q], 1.0, members))
    return found


def full_logits(model: PreTrainedModel, item: Item) -> tuple[torch.Tensor, torch.Tensor]:
    """(log pi of the response tokens, entropies), each (T,)."""
    logits = model(torch.tensor([item.prompt + item.response]), use_cache=False).logits[0, len(item.prompt) - 1 : -1]
    every = torch.log_softmax(logits, -1)
    return every.gather(-1, torch.tensor(item.response)[:, None]).squeeze(-1), -(every.exp() * every).sum(-1)


def surrogate(method: str, item: Item, role: str, l: torch.Tensor, mean_entropy: float) -> torch.Tensor:
    """(T,) the published loss of each token in one of the sequence's roles, before any normaliser."""
    group = torch.tensor(item.group)
    centred = item.score - group.mean()
    if role == "sft":
        weights = {"srft": 0.5 * torch.exp(torch.tensor(-mean_entropy)), "hpt-mix": 0.1}
        return -weights.get(method, 1.0) * l
    if role == "off":
        pi = l.exp()
        if method == "hpt-mix":
            return -pi / (pi + 0.1)
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
    """Micro-batch by micro-batch: sum_RL / 8192 + token mean of SFT - ENTROPY x token mean of all entropies.

    A sequence is in one micro-batch, once, whatever its roles (mix_actor.py and mix_core_alg.py, `srft` and
    `switch_off_sft`: both losses and the entropy are of one forward pass).
    """

    def loss(item: Item, role: str) -> torch.Tensor:
        return surrogate(method, item, role, l[item.tokens], entropy[item.tokens].mean().item()).sum()

    total = torch.zeros(())
    for part in parts:
        if imitated := [item for item in part if "sft" in item.roles]:
            tokens = sum(len(item.response) for item in imitated)
            total = total + sum(loss(item, "sft") for item in imitated) / tokens
        for item in part:
            total = total + sum(loss(item, role) for role in item.roles if role != "sft") / MAX_TOKENS
        total = total - ENTROPY * torch.cat([entropy[item.tokens] for item in part]).mean()
    return total


def corrected_loss(method: str, items: Sequence[Item], l: dict, entropy: dict) -> torch.Tensor:
    """Mean over questions of the mean over the group of the mean over tokens; SFT beside the group."""
    total = torch.zeros(())
    for item in items:
        for role in item.roles:
            members = 1 if role == "sft" else len(item.group)
            h = entropy[item.tokens].mean().item()
            mean = surrogate(method, item, role, l[item.tokens], h).mean()
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


@dataclass(frozen=True)
class Rank(World):
    """A rank that needs no other: it makes all rollouts, and its own micro-batches."""

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def spread(self, items: Sequence[Any], work: Any) -> list[Any]:
        return list(work(items))

    def own(self, items: Sequence[Any]) -> Sequence[Any]:
        return items


def trained(
    model: PreTrainedModel, config: Config, world: World = ALONE
) -> tuple[torch.Tensor, list[MicroBatch], dict]:
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
    micro_batches = MicroBatcher(config.batch.tokens, packed=False, device=torch.device("cpu"), world=world)
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
        world=world,
    )
    model.zero_grad()
    trainer.step(1)
    return torch.cat([p.grad.flatten().clone() for p in model.parameters()]), batches, coefficients


def check(
    method: str, model: PreTrainedModel, config: Config, *, official: bool, ranks: Sequence[World] = (ALONE,)
) -> int:
    """Compares a step of all ranks with the formula; returns how many micro-batches it had."""
    steps = [trained(model, config, rank) for rank in ranks]
    items = {item.tokens: item for item in items_of(method)}

    def part(batch: MicroBatch) -> list[Item]:
        """The sequences of a micro-batch. A demonstration with two roles is where it is imitated."""
        found = [(items[tuple(row.tokens)], row.signal) for row in batch.rows]
        return [item for item, signal in found if signal == SIGNALS[item.roles[0]]]

    parts = [[part(batch) for batch in batches] for _, batches, _ in steps]

    def loss(l: dict, entropy: dict) -> torch.Tensor:
        if not official:
            return corrected_loss(method, list(items.values()), l, entropy)
        # With the entropy bonus, all-solved groups are trained on, too.
        assert sum(len(part) for own in parts for part in own) == len(items)
        return sum(official_loss(method, [p for p in own if p], l, entropy) for own in parts) / len(ranks)

    model.zero_grad()
    values = {tokens: full_logits(model, item) for tokens, item in items.items()}
    l = {tokens: pair[0] for tokens, pair in values.items()}
    entropy = {tokens: pair[1] for tokens, pair in values.items()}
    loss(l, entropy).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    gradient = torch.stack([gradient for gradient, _, _ in steps]).sum(0)
    assert (gradient - expected).norm() < TOLERANCE * expected.norm()

    coefficients = {key: g for _, _, own in steps for key, g in own.items()}
    assert coefficients.keys() <= {(tokens, SIGNALS[role]) for tokens, item in items.items() for role in item.roles}
    leaves = {tokens: value.detach().requires_grad_() for tokens, value in l.items()}
    without_entropy = loss(leaves, {tokens: value.detach() for tokens, value in entropy.items()})
    for item, g in zip(items.values(), torch.autograd.grad(without_entropy, list(leaves.values())), strict=True):
        zero = torch.zeros_like(g)
        found = sum((coefficients.get((item.tokens, SIGNALS[role]), zero) for role in item.roles), zero)
        assert torch.allclose(found, g, rtol=2e-5, atol=1e-9), item
    return sum(map(len, parts))


@pytest.mark.parametrize("tokens", [1000, 60])
@pytest.mark.parametrize("method", ["hpt", "hpt-mix", "grpo", "luffy", "srft"])
def test_official_aggregation_is_the_published_codes(method: str, tokens: int) -> None:
    config = settings(
        method,
        loss={"aggregation": "official", "entropy_coef": ENTROPY},
        batch={"questions": len(SCORES), "tokens": tokens},
    )
    assert (check(method, tiny_model(), config, official=True) > 1) == (tokens == 60)


def test_the_official_aggregation_averages_over_ranks() -> None:
    """As FSDP does, so that the norm before clipping is the published one on as many GPUs."""
    sections: dict[str, Any] = {
        "loss": {"aggregation": "official", "entropy_coef": ENTROPY},
        "batch": {"questions": len(SCORES), "tokens": 60},
    }
    ranks = [Rank(0, 2), Rank(1, 2)]
    assert check("hpt-mix", tiny_model(), settings("hpt-mix", **sections), official=True, ranks=ranks) > 2


@pytest.mark.parametrize("tokens", [1000, 60])
@pytest.mark.parametrize("method", ["hpt", "hpt-mix", "grpo", "luffy", "srft"])
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
