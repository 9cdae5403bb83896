"""The trainers that are compared: each case has the trainer as it is first, then the same one with upge, then hpt's.

A variant trains a model of random weights for some steps. Everything that is not set here is the trainer's default.
Trainers are imported where they are used, since that takes 10 s and most processes need only names.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .shapes import GROUP, Shape

if TYPE_CHECKING:
    from .worker import Steps


@dataclass(frozen=True)
class Setup:
    """What a variant trains: a model of random weights, for a number of steps that the callback watches."""

    shape: Shape
    device: str
    steps: int
    callback: Steps
    folder: Path
    # Gradients are compared as they are. Their norm is computed, as by default, but is never as large as this.
    max_grad_norm: float = 1e9

    def arguments(self) -> dict[str, Any]:
        """Arguments that TrainingArguments, SFTConfig and GRPOConfig share."""
        return {
            "output_dir": str(self.folder),
            "max_steps": self.steps,
            "per_device_train_batch_size": self.shape.rows // self.shape.micro_batches,
            "gradient_accumulation_steps": self.shape.micro_batches,
            "max_grad_norm": self.max_grad_norm,
            "use_cpu": self.device == "cpu",
            "bf16": self.shape.dtype == "bfloat16",
            "gradient_checkpointing": self.shape.checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False} if self.shape.checkpointing else None,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }


def hf_sft(setup: Setup, *, patched: bool) -> None:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from .batches import examples, make_model

    model = make_model(setup.shape, setup.device)
    if patched:
        from upge.integrations.transformers import patch

        patch(model)
    data: Any = Dataset.from_list(examples(setup.shape))
    arguments = TrainingArguments(**setup.arguments())
    Trainer(model, arguments, train_dataset=data, callbacks=[setup.callback]).train()


def trl_sft(setup: Setup, *, fused: bool) -> None:
    theirs, ours = _trl()
    from datasets import Dataset

    from ..training.word_tokenizer import word_tokenizer
    from .batches import examples, make_model

    trainer = (ours if fused else theirs).SFTTrainer(
        make_model(setup.shape, setup.device),
        theirs.SFTConfig(**setup.arguments(), max_length=None),
        train_dataset=Dataset.from_list(examples(setup.shape)),
        processing_class=word_tokenizer(setup.shape.vocabulary),
        callbacks=[setup.callback],
    )
    trainer.train()


def trl_grpo(setup: Setup, *, fused: bool = False, logprobs: bool = False) -> None:
    """The rollouts are made up. Advantages are not divided by their standard deviation, to which TRL adds 1e-4."""
    theirs, ours = _trl()
    from datasets import Dataset

    from ..training.word_tokenizer import word_tokenizer
    from .batches import MadeUpRollouts, make_model

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func is experimental
    rollouts = MadeUpRollouts(setup.shape)

    def generate(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        completions = rollouts.completions(len(prompts))
        return {"prompt_ids": [rollouts.prompt] * len(prompts), "completion_ids": completions, "logprobs": None}

    def reward(completions: list[Any], **columns: Any) -> list[float | None]:
        setup.callback.start()
        return [*rollouts.rewards(len(completions))]

    trainer = (ours if fused else theirs).GRPOTrainer(
        model=make_model(setup.shape, setup.device),
        reward_funcs=reward,
        rollout_func=generate,
        args=theirs.GRPOConfig(
            **setup.arguments(),
            num_generations=GROUP,
            max_completion_length=setup.shape.length,
            beta=0.0,
            scale_rewards="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["?"] * (setup.shape.rows // GROUP)}),
        processing_class=word_tokenizer(setup.shape.vocabulary),
        callbacks=[setup.callback],
    )
    context: AbstractContextManager[None] = ours.use_logprobs() if logprobs else nullcontext()
    with context:
        trainer.train()


def hpt_grpo(setup: Setup) -> None:
    from .hpt_steps import train

    train(setup)


def _trl() -> tuple[ModuleType, ModuleType]:
    """TRL, and upge's part for it. That one first: where TRL is missing, it says what to install."""
    ours = importlib.import_module("upge.integrations.trl")
    return importlib.import_module("trl"), ours


Variant = Callable[[Setup], None]
CASES: dict[str, dict[str, Variant]] = {
    "hf-sft": {
        "transformers.Trainer": lambda setup: hf_sft(setup, patched=False),
        "with upge's patch(model)": lambda setup: hf_sft(setup, patched=True),
    },
    "trl-sft": {
        "trl.SFTTrainer": lambda setup: trl_sft(setup, fused=False),
        "upge's SFTTrainer": lambda setup: trl_sft(setup, fused=True),
    },
    "trl-grpo": {
        "trl.GRPOTrainer": trl_grpo,
        "within upge's use_logprobs()": lambda setup: trl_grpo(setup, logprobs=True),
        "upge's GRPOTrainer": lambda setup: trl_grpo(setup, fused=True),
        "hpt's trainer": hpt_grpo,
    },
}
