"""Small models and settings whose steps are timed beside the plan of time, and how a step of them is timed."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.memory.plan import plan_stages
from hpt.timing.plan import Workload, step_time

from .synthetic import synthetic_trainer, write_random_model

PROMPT = 16  # tokens
STEPS = 2  # that are timed, after one that is not
SHAPES: dict[str, dict[str, Any]] = {
    "narrow": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "vocab_size": 2048},
    "middle": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "vocab_size": 8192},
    "wide": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 32768},
}
SFT: dict[str, Any] = {"gate": {"kind": "sft"}}
# The shape, and the settings that differ from a plain step of RL.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "narrow, RL": ("narrow", {}),
    "narrow, SFT": ("narrow", {**SFT, "batch": {"questions": 32}}),
    "middle, RL": ("middle", {"batch": {"questions": 2}}),
    "middle, LoRA, checkpointing": (
        "middle",
        {"model": {"lora": {"rank": 8}, "gradient_checkpointing": True}, "batch": {"questions": 2}},
    ),
    "wide, RL": ("wide", {"batch": {"questions": 1}, "rollout": {"max_tokens": 32}}),
    "wide, SFT": ("wide", SFT),
    "narrow, continuous batches": ("narrow", {"rollout": {"batching": "continuous"}}),
}


def time_case(name: str) -> dict[str, Any]:
    """Seconds of each phase of a step: as planned, and as measured in each of `STEPS` steps."""
    torch.set_num_threads(1)
    shape, changes = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        config = _config(folder, changes)
        architecture = Qwen2Config(
            **SHAPES[shape], num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096
        )
        write_random_model(architecture, torch.float32, "cpu", Path(folder))
        (memory,) = plan_stages(config, prompt_tokens=PROMPT)
        limit = config.rollout.max_tokens
        step = step_time(memory, Workload(PROMPT, limit, limit))  # a random model hardly ever ends a response
        planned = {"rollout": step.phases["rollout"], "train": step.phases["train"], "step": step.seconds}
        return {"case": name, "planned": planned, "measured": _measure(config)}


def _measure(config: Config) -> list[dict[str, float]]:
    with synthetic_trainer(config, prompt=PROMPT, made_up=False) as trainer:
        # CPU time of this process: on a machine that others use too, the wall clock would count their work.
        trainer.clock.now = time.process_time
        steps = [trainer.step(number)[0] for number in range(1, STEPS + 2)]
    return [
        {phase: float(step.get(f"time/{phase}", 0.0)) for phase in ("rollout", "train", "step")} for step in steps[1:]
    ]


def _config(folder: str, changes: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "output": folder,
        "steps": STEPS + 1,
        "device": "cpu",
        "threads": 1,
        "model": {"path": folder},
        "data": {"train": "none", "max_prompt_tokens": PROMPT},
        "verify": {"function": "bench.training.coin:fair_coin", "workers": 1},
        "gate": {"kind": "rl"},
        "rollout": {"n": 8, "max_tokens": 64, "batch_size": 16},
        "batch": {"questions": 4, "tokens": 1024},
    }
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values
    return build_config(settings, source="bench step-time")
