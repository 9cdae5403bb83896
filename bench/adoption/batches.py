"""Models of random weights, and the batches that they are trained on. The same ones in every process."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from .shapes import Shape

PROMPT = 16  # tokens before each rollout


def make_model(shape: Shape, device: str) -> PreTrainedModel:
    """A model whose logits have a standard deviation of about 3, as a trained model's."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=shape.vocabulary - 1,
        pad_token_id=shape.vocabulary - 1,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=3 / shape.width**0.5)
    return model


def examples(shape: Shape) -> list[dict[str, Any]]:
    """Rows of random tokens for SFT. The first token of a row is predicted from nothing, so a row has one more."""
    draw = random.Random(0)
    rows = [_tokens(shape, shape.length + 1, draw) for _ in range(shape.rows)]
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in rows]


class MadeUpRollouts:
    """Rollouts of random tokens and random rewards. The same in every process.

    No two rewards are equal, so that every rollout has an advantage.
    """

    def __init__(self, shape: Shape):
        self.shape, self.draw = shape, random.Random(0)
        self.prompt = _tokens(shape, PROMPT, random.Random(0))

    def completions(self, count: int) -> list[list[int]]:
        return [_tokens(self.shape, self.shape.length, self.draw) for _ in range(count)]

    def rewards(self, count: int) -> list[float]:
        return [self.draw.random() for _ in range(count)]


def _tokens(shape: Shape, length: int, draw: random.Random) -> list[int]:
    return [draw.randrange(shape.vocabulary - 1) for _ in range(length)]
