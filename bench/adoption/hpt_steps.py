"""Steps of hpt's own trainer, on the rollouts and with the settings of TRL's GRPO."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.optim.local import LocalEngine
from hpt.rollout import Rollout, RolloutEngine, Sampling
from hpt.rollout.engine import OnRollout
from hpt.support.distributed import World
from hpt.training.assemble import make_policy, make_trainer
from hpt.verify import Verdict

from ..training.synthetic import random_questions
from .batches import PROMPT, MadeUpRollouts, make_model
from .shapes import GROUP
from .worker import Steps

if TYPE_CHECKING:
    from .variants import Setup


def train(setup: Setup) -> None:
    """Train the steps of `setup`, each watched by its callback as those of transformers' Trainer are."""
    config, steps, rollouts = _config(setup), setup.callback, MadeUpRollouts(setup.shape)
    make_model(setup.shape, setup.device).save_pretrained(config.model.path)
    policy, engine, micro_batches = make_policy(config, None, torch.device(setup.device), World())
    trainer = make_trainer(
        config,
        questions=random_questions(config),
        held_out=[],
        renderer=_Renderer(rollouts),  # type: ignore[arg-type]
        rollout_engine=_Engine(rollouts),
        verifier=_Verifier(rollouts, steps),  # type: ignore[arg-type]
        policy=policy,
        engine=engine,
        micro_batches=micro_batches,
    )
    assert isinstance(engine, LocalEngine)
    engine.optimizer.register_step_pre_hook(lambda *_: steps.on_pre_optimizer_step(model=policy.model))
    for step in range(1, setup.steps + 1):
        steps.on_step_begin()
        trainer.step(step)
        steps.on_step_end()


def _config(setup: Setup) -> Config:
    """TRL's defaults: GRPO with the mean over all tokens, without a KL penalty, and AdamW with a falling rate."""
    shape, folder = setup.shape, setup.folder
    return build_config(
        {
            "output": str(folder / "run"),
            "steps": setup.steps,
            "device": setup.device,
            "model": {
                "path": str(folder / "model"),
                "dtype": shape.dtype,
                "attention": "sdpa",
                "gradient_checkpointing": shape.checkpointing,
                "liger": False,
            },
            "data": {"train": "none"},
            "rollout": {"n": GROUP, "max_tokens": shape.length},
            "gate": {"kind": "rl"},
            "rl": {"objective": "GRPO", "advantage": "mean"},
            "loss": {"aggregation": "token"},
            "optimizer": {"lr": 1e-6, "weight_decay": 0.0, "schedule": "linear", "clip_grad_norm": setup.max_grad_norm},
            "batch": {
                "questions": shape.rows // GROUP,
                "tokens": shape.rows // shape.micro_batches * (PROMPT + shape.length),
            },
        },
        source="bench adopt",
    )


class _Renderer:
    """The one prompt of all questions."""

    def __init__(self, rollouts: MadeUpRollouts) -> None:
        self.rollouts, self.tokenizer = rollouts, _Tokenizer()

    def encode_prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        return [self.rollouts.prompt for _ in questions]


class _Tokenizer:
    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        return ""  # no reward reads it


class _Engine(RolloutEngine):
    def __init__(self, rollouts: MadeUpRollouts) -> None:
        self.rollouts = rollouts

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, on_rollout: OnRollout | None = None
    ) -> list[list[Rollout]]:
        groups = [
            [Rollout(tokens, [-1.0] * len(tokens), "length") for tokens in self.rollouts.completions(sampling.n)]
            for _ in prompts
        ]
        if on_rollout:
            for index, group in enumerate(groups):
                for number, rollout in enumerate(group):
                    on_rollout(index, number, rollout)
        return groups


class _Verifier:
    """Random scores. The steps are measured from here on."""

    def __init__(self, rollouts: MadeUpRollouts, steps: Steps) -> None:
        self.rollouts, self.steps = rollouts, steps
        self.keys: list[Hashable] = []

    @contextmanager
    def scoring(self) -> Iterator[_Verifier]:
        self.keys = []
        yield self

    def add(self, key: Hashable, response: str, answer: str) -> None:
        self.keys.append(key)

    def verdicts(self) -> dict[Hashable, Verdict]:
        self.steps.start()
        scores = self.rollouts.rewards(len(self.keys))
        return {key: Verdict("incorrect", score) for key, score in zip(self.keys, scores, strict=True)}
