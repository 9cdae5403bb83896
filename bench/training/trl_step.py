"""A step of TRL's `GRPOTrainer` with a run's settings. Needs trl."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, TrainerCallback

from hpt.config.schema import Config
from hpt.model.attention import attention_kind
from hpt.support.device import pick_device

from .synthetic import Renderer, random_questions
from .word_tokenizer import word_tokenizer


def grpo_step(config: Config, *, prompt: int) -> dict[str, Any]:
    """Train two steps on prompts of `prompt` tokens; the tokens that the second trained on, and its seconds.

    Model, LoRA, questions and rollouts are those of `config`. A micro-batch has as many whole groups as its token
    budget allows, but at least one. TRL samples all rollouts of a step at once. Everything else is TRL's default: no
    Liger, adapters in float32.
    """
    settings, lora = config.rollout, config.model.lora
    assert lora is not None  # every case with TRL has it
    tokenizer = word_tokenizer(AutoConfig.from_pretrained(config.model.path).vocab_size)
    prompts = Renderer(len(tokenizer), prompt, 0).encode_prompts(random_questions(config))
    group = settings.n * (prompt + settings.max_tokens)
    whole = [n for n in range(1, len(prompts) + 1) if len(prompts) % n == 0 and n * group <= config.batch.tokens]
    groups = max(whole, default=1)
    device, watch = pick_device(config.device), _Watch(prompt)
    trl.GRPOTrainer(
        model=config.model.path,
        reward_funcs=watch.reward,
        args=trl.GRPOConfig(
            output_dir=config.output,
            max_steps=2,
            per_device_train_batch_size=groups * settings.n,
            gradient_accumulation_steps=len(prompts) // groups,
            num_generations=settings.n,
            max_completion_length=settings.max_tokens,
            temperature=settings.temperature,
            beta=0.0,
            use_cpu=device.type == "cpu",
            bf16=True,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            model_init_kwargs={
                "dtype": config.model.dtype,
                "attn_implementation": attention_kind(config.model, device),
            },
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(tokens) for tokens in prompts]}),
        processing_class=tokenizer,
        callbacks=[watch],
        peft_config=LoraConfig(
            r=lora.rank,
            lora_alpha=lora.numerator,  # type: ignore[arg-type]  # any number works
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        ),
    ).train()
    return {
        "trl": trl.__version__,
        "trained_tokens": watch.tokens,
        "seconds": {
            "rollout": watch.rewarded - watch.begun,
            "train": watch.ended - watch.rewarded,
            "step": watch.ended - watch.begun,
        },
    }


class _Watch(TrainerCallback):
    """When the last step began, computed its rewards (between rollouts and training), and ended."""

    begun = rewarded = ended = 0.0
    tokens = 0

    def __init__(self, prompt: int) -> None:
        self.prompt, self.draw = prompt, random.Random(0)

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.begun = _clock()

    def reward(self, completion_ids: Sequence[Sequence[int]], **options: Any) -> list[float | None]:
        """Random and all different, so that every rollout has an advantage and is trained on."""
        self.rewarded = _clock()
        self.tokens = sum(self.prompt + len(tokens) for tokens in completion_ids)
        return [self.draw.random() for _ in completion_ids]

    def on_step_end(self, *args: Any, **options: Any) -> None:
        self.ended = _clock()


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
