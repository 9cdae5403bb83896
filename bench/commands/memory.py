"""The peak memory of tensors as `hpt plan` predicts it and as measured, for small models on a CPU.

The models have several shapes, so that activations, weights and the loss each dominate once. Each case runs in its own
process: two training steps and one rollout of hpt's trainer, while all live tensors are counted. Gradients of earlier
micro-batches and the optimizer's states are included, as in a run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from hpt.config.recipe import build_config
from hpt.config.schema import Config
from hpt.memory import make_plan
from hpt.memory.allocations import AllocationTracker
from hpt.rollout import Sampling

from ..output import output_path
from ..training.synthetic import REWARD, full_experiences, synthetic_trainer, write_random_model

PROMPT = 4
SHAPES: dict[str, dict[str, int]] = {
    "activations": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 6},
    "weights": {"vocab_size": 512, "hidden_size": 320, "intermediate_size": 960, "num_hidden_layers": 3},
    "loss": {"vocab_size": 16000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1},
}
# Architecture, shape, and the settings that differ from a plain run.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "fp32, activations": ("qwen2", "activations", {}),
    "fp32, weights": ("qwen2", "weights", {}),
    "fp32, loss": ("qwen2", "loss", {}),
    "bf16, activations": ("qwen2", "activations", {"model": {"dtype": "bfloat16"}}),
    "bf16, weights": ("qwen2", "weights", {"model": {"dtype": "bfloat16"}}),
    "bf16, loss": ("qwen2", "loss", {"model": {"dtype": "bfloat16"}}),
    "llama": ("llama", "activations", {}),
    "checkpointing": ("qwen2", "activations", {"model": {"gradient_checkpointing": True}}),
    "bf16, checkpointing": ("llama", "weights", {"model": {"dtype": "bfloat16", "gradient_checkpointing": True}}),
    "checkpointing, long": (
        "llama",
        "activations",
        {"model": {"gradient_checkpointing": True}, "rollout": {"max_tokens": 252}},
    ),
    "packed": ("qwen2", "activations", {"batch": {"packing": "packed"}}),
    "eager": ("qwen2", "activations", {"model": {"attention": "eager"}}),
    "8-bit states": ("qwen2", "weights", {"optimizer": {"states": "8bit"}}),
    "LoRA": ("qwen2", "weights", {"model": {"lora": {"rank": 8}}}),
    "bf16, LoRA, checkpointing": (
        "llama",
        "weights",
        {"model": {"dtype": "bfloat16", "lora": {"rank": 8}, "gradient_checkpointing": True}},
    ),
    "top-p": ("qwen2", "loss", {"rollout": {"top_p": 0.9}}),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench memory", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--case", choices=CASES, help="run only this one, in this process, and print JSON")
    parser.add_argument("--out", type=output_path, help="write OUT.json and OUT.md")
    args = parser.parse_args(argv)
    if args.case:
        print(json.dumps(run_case(args.case)))
        return 0
    rows = []
    for name in args.cases:
        command = [sys.executable, "-m", "bench", "memory", "--case", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(rows[-1]), flush=True)
    if args.out:
        args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        head = ["| case | training, MiB | predicted | rollout, MiB | predicted |", "|---|---|---|---|---|"]
        args.out.with_suffix(".md").write_text("\n".join([*head, *map(line, rows)]) + "\n")
    return 0


def line(row: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    cells = [row["case"]]
    for phase in ("training", "rollout"):
        measured, predicted = row["measured"][phase], row["predicted"][phase]
        cells += [f"{measured / 2**20:.1f}", f"{predicted / 2**20:.1f} ({predicted / measured - 1:+.1%})"]
    return f"| {' | '.join(cells)} |"


def run_case(name: str) -> dict[str, Any]:
    """Predicted and measured peaks of a case, in bytes."""
    torch.set_num_threads(1)
    architecture, shape, changes = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        config = _config(folder, changes)
        write_random_model(_architecture(architecture, shape), getattr(torch, config.model.dtype), "cpu", Path(folder))
        plan = make_plan(config, prompt_tokens=PROMPT)
        return {
            "case": name,
            "predicted": {"training": plan.training_peak, "rollout": plan.rollout_peak},
            "measured": measure(config),
            "torch": torch.__version__,
        }


def _architecture(kind: str, shape: str) -> PretrainedConfig:
    make: Any = {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind]
    return make(**SHAPES[shape], num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096)


def _config(folder: str, changes: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "output": folder,
        "steps": 4,
        "device": "cpu",
        "model": {"path": folder},
        "data": {"train": "none"},
        "verify": {"function": REWARD, "workers": 1},
        "rollout": {"n": 4, "max_tokens": 60, "batch_size": 12},
        "batch": {"questions": 4, "tokens": 512},
    }
    for section, values in changes.items():
        settings[section] = settings.get(section, {}) | values
    return build_config(settings, source="bench memory")


def measure(config: Config) -> dict[str, int]:
    """Peak bytes of live tensors in the second training step, and in a rollout after it."""
    with AllocationTracker("cpu") as live, synthetic_trainer(config, prompt=PROMPT, made_up=False) as trainer:
        model = trainer.policy.model
        live.add([*model.parameters(), *model.buffers()])
        experiences = full_experiences(trainer)
        trainer.update(trainer.rows(experiences))
        live.reset_peak()
        trainer.update(trainer.rows(experiences))
        training = live.peak
        live.reset_peak()
        sampling = Sampling(
            config.rollout.n, config.rollout.max_tokens, config.rollout.temperature, config.rollout.top_p
        )
        prompts = trainer.renderer.encode_prompts(trainer.questions)
        # Prompts of different lengths, as in a run: generation then gets an attention mask.
        trainer.rollout_engine.generate([prompt[index % 3 :] for index, prompt in enumerate(prompts)], sampling, seed=0)
        return {"training": training, "rollout": live.peak}
