"""Heads of well-known models, for commands that measure."""

from __future__ import annotations

HEADS = {  # entries of the vocabulary V, width D
    "smollm2-135m": (49152, 576),
    "qwen3-0.6b": (151936, 1024),
    "qwen2.5-1.5b": (151936, 1536),
    "qwen2.5-7b": (152064, 3584),
    "qwen3-8b": (151936, 4096),
    "llama-3.1-8b": (128256, 4096),
    "gemma-2-9b": (256000, 3584),
}
