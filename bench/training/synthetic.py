"""hpt's trainer without data: random weights, random questions, sampled or made-up rollouts."""

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
from hpt.method.experience import Experience
from hpt.method.gate import ONLY_ROLLOUTS
from hpt.rollout import EngineInputs, Rollout, RolloutEngine, Sampling, make_rollout_engine
from hpt.rollout.engine import OnRollout
from hpt.support.device import pick_device
from hpt.support.distributed import World
from hpt.training.assemble import make_policy, make_trainer
from hpt.training.trainer import Trainer
from hpt.verify import make_verifier


def write_random_model(architecture: PretrainedConfig, dtype: torch.dtype, device: str, folder: Path) -> None:
    """A model folder with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(architecture, dtype=dtype)
    model.save_pretrained(folder)


class MadeUpRollouts(RolloutEngine):
    """Random tokens of random lengths up to the limit, without a model."""

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
        self.tokenizer = _Tokenizer()

    def encode_prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        return [self._tokens(question.id + "?", self.prompt) for question in questions]

    def demonstration_ids(self, question: Question) -> list[int]:
        return self._tokens(question.id + "!", self.response)

    def _tokens(self, key: str, length: int) -> list[int]:
        draw = random.Random(key)
        return [draw.randrange(self.vocabulary) for _ in range(length)]


def random_questions(config: Config) -> list[Question]:
    """The questions of one step. Their ids are numbers; `Renderer` makes up their tokens."""
    return [Question(str(number), "", str(number)) for number in range(config.batch.questions)]


class _Tokenizer:
    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        return str(sum(tokens))


REWARD = "bench.training.coin:coin"


@contextmanager
def synthetic_trainer(config: Config, *, prompt: int, made_up: bool) -> Iterator[Trainer]:
    """hpt's trainer, policy, engines and verifier for the model folder of `config`, with prompts of `prompt` tokens."""
    device = pick_device(config.device)
    policy, optimizer, batches = make_policy(config, None, device, World())
    model = policy.model
    vocabulary = model.config.get_text_config().vocab_size
    rollouts: RolloutEngine = MadeUpRollouts(vocabulary)
    if not made_up:
        inputs = EngineInputs(config, model, device, [vocabulary - 1], prompt, optimizer.gathered_parameters)
        rollouts = make_rollout_engine(inputs)
    with make_verifier(config.verify) as verifier, closing(rollouts):
        yield make_trainer(
            config,
            questions=random_questions(config),
            held_out=[],
            renderer=Renderer(vocabulary, prompt, config.rollout.max_tokens),  # type: ignore[arg-type]
            rollout_engine=rollouts,
            verifier=verifier,
            policy=policy,
            engine=optimizer,
            micro_batches=batches,
        )


def full_experiences(trainer: Trainer) -> list[Experience]:
    """Questions whose rollouts and demonstrations all have the full length, and advantage 1."""
    settings = trainer.config.rollout
    renderer = trainer.renderer
    experiences = []
    for question, prompt in zip(trainer.questions, renderer.encode_prompts(trainer.questions), strict=True):
        response = renderer.demonstration_ids(question)
        rollouts = [Rollout(response, [-1.0] * len(response), "length", advantage=1.0) for _ in range(settings.n)]
        experiences.append(Experience(question, prompt, rollouts, ONLY_ROLLOUTS, response))
    return experiences
