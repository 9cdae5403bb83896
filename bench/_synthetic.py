"""The trainer of a run without data: random weights, random questions, rollouts that are drawn or made up."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.method.gate import make_gate
from hpt.method.rows import Group
from hpt.model.loading import load_policy
from hpt.model.policy import Policy
from hpt.rollout import Rollout, RolloutEngine, Sampling, make_rollout_engine
from hpt.rollout.engine import OnRollout
from hpt.support.distributed import World
from hpt.training.assemble import make_engine, pick_device
from hpt.training.trainer import Trainer
from hpt.verify import make_verifier


def write_random_model(architecture: PretrainedConfig, dtype: torch.dtype, device: str, folder: Path) -> None:
    """A model folder with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype)
    model.save_pretrained(folder)


class MadeUpRollouts(RolloutEngine):
    """Runs no model: random tokens of random lengths, up to the limit."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, on_rollout: OnRollout | None = None
    ) -> list[list[Rollout]]:
        draw = random.Random(seed)
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        for index, group in enumerate(rollouts):
            for place in range(sampling.n):
                length = draw.randint(sampling.max_tokens // 4, sampling.max_tokens)
                tokens = [draw.randrange(self.vocabulary) for _ in range(length)]
                group.append(Rollout(tokens, [-1.0] * length, "length"))
                if on_rollout:
                    on_rollout(index, place, group[-1])
        return rollouts


class Renderer:
    """Prompts and demonstrations of `prompt` and `response` random tokens."""

    def __init__(self, vocabulary: int, prompt: int, response: int) -> None:
        self.vocabulary, self.prompt, self.response = vocabulary, prompt, response

    def encode_prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        return [self._tokens(question.id + "?", self.prompt) for question in questions]

    def demonstration_ids(self, question: Question) -> list[int]:
        return self._tokens(question.id + "!", self.response)

    def _tokens(self, key: str, length: int) -> list[int]:
        draw = random.Random(key)
        return [draw.randrange(self.vocabulary) for _ in range(length)]


def random_questions(config: Config) -> list[Question]:
    """As many as a step has, told apart by number; `Renderer` makes up their tokens."""
    return [Question(str(number), "", str(number)) for number in range(config.batch.questions)]


class _Tokenizer:
    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        return str(sum(tokens))


REWARD = "bench._coin:coin"


@contextmanager
def synthetic_trainer(config: Config, *, prompt: int, made_up: bool) -> Iterator[Trainer]:
    """hpt's own trainer, policy, engines and verifier over a model folder; prompts of `prompt` tokens."""
    device = pick_device(config.device)
    model = load_policy(config, None, device)
    vocabulary = model.config.get_text_config().vocab_size
    policy = Policy(model, config)
    optimizer = make_engine(policy.module, config, World())
    policy.module = optimizer.module
    rollouts: RolloutEngine = MadeUpRollouts(vocabulary)
    if not made_up:
        rollouts = make_rollout_engine(config, model, device, [vocabulary - 1], lambda: prompt, optimizer.whole_weights)
    with make_verifier(config.verify) as verifier, closing(rollouts):
        yield Trainer(
            config=config,
            questions=random_questions(config),
            held_out=[],
            tokenizer=_Tokenizer(),  # type: ignore[arg-type]
            renderer=Renderer(vocabulary, prompt, config.rollout.max_tokens),  # type: ignore[arg-type]
            rollout_engine=rollouts,
            verifier=verifier,
            gate=make_gate(config.gate, config.sampled),
            policy=policy,
            engine=optimizer,
        )


def full_groups(trainer: Trainer, prompt: int) -> list[Group]:
    """Groups whose rollouts and demonstrations all have the full length, one advantage each."""
    settings = trainer.config.rollout
    renderer = trainer.renderer
    groups = []
    for question, tokens in zip(trainer.questions, renderer.encode_prompts(trainer.questions), strict=True):
        response = renderer.demonstration_ids(question)
        rollouts = [Rollout(response, [-1.0] * len(response), "length") for _ in range(settings.n)]
        groups.append(Group(tokens, response, rollouts, [1.0] * settings.n, 1.0, 0.0))
    return groups
