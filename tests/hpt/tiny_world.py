"""A world small enough to train in a second: a random model of 20k parameters, a character tokenizer, sums to solve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIAL = ["<pad>", "<eos>"]
CHARACTERS = "0123456789+=\n\\boxed{} "


def make_world(folder: Path, **shape: Any) -> Path:
    """Writes model/, train.jsonl, eval.jsonl and recipe.yaml; returns the recipe. shape: of the model, where it is not
    the usual."""
    letters = sorted(set(CHARACTERS))
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIAL, *letters])}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    usual = {
        "vocab_size": len(SPECIAL) + len(letters),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**usual | shape))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, start, count in (("train", 0, 24), ("eval", 50, 6)):
        lines = [
            {
                "id": f"{name}-{i}",
                "prompt": f"{i % 10}+{i // 10}=",
                "answer": str(i % 10 + i // 10),
                "demonstration": f"{i % 10 + i // 10}\n\\boxed{{{i % 10 + i // 10}}}",
                "grade": "low" if i % 2 else "high",
            }
            for i in range(start, start + count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        "output": str(folder / "run"),
        "steps": 4,
        "threads": 1,
        "model": {"path": str(folder / "model")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
            "max_demonstration_tokens": 24,
        },
        "prompt": {"style": "plain"},
        "rollout": {"n": 4, "max_tokens": 8, "batch_size": 16},
        "verify": {"function": "rewards:has_a_digit", "workers": 1},
        "optimizer": {"lr": 1e-3},
        "batch": {"questions": 6, "tokens": 200},
        "eval": {"every": 2, "n": 2},
        "checkpoint": {"every": 2, "keep": 2},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
