"""`prepare` of the recipes in this folder: a random model and a few sums, so that a run takes seconds on a CPU."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from hpt.config.schema import Config

CHARACTERS = ["<pad>", "<eos>", *"0123456789+=?!"]


def prepare(config: Config) -> None:
    """Writes the folder `model.path` and the file `data.train`."""
    prepare_model(config)
    sums = [(a, b) for a in range(5) for b in range(5)]
    _write(config, [{"prompt": f"{a}+{b}=", "answer": str(a + b), "demonstration": str(a + b)} for a, b in sums])


def prepare_model(config: Config) -> None:
    """Writes the folder `model.path`."""
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(CHARACTERS)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # one token per character
    torch.manual_seed(config.seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(CHARACTERS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    model.save_pretrained(config.model.path)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    wrapped.save_pretrained(config.model.path)


def prepare_chats(config: Config) -> None:
    """As `prepare`, with the questions as TRL has them: messages, and columns for reward functions."""
    prepare_model(config)
    _write(config, [_chat(a, b) for a in range(5) for b in range(5)])


def _chat(a: int, b: int) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"{a}+{b}="}],
        "solution": str(a + b),
        "task": "small" if a + b < 2 else "large",
        "demonstration": str(a + b),
    }


def _write(config: Config, questions: list[dict[str, Any]]) -> None:
    Path(config.data.train).write_text("".join(json.dumps(question) + "\n" for question in questions))
