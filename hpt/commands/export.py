"""`hpt export`: a checkpoint as a model folder that any software reads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console

from hpt.config.schema import ModelConfig
from hpt.data.tokenizer import load_tokenizer
from hpt.model.loading import load_model
from hpt.support.errors import ConfigError, HptError
from hpt.training.checkpoint import checkpoints


def run_export(options: argparse.Namespace, console: Console) -> int:
    """Writes safetensors, configuration and tokenizer; adapters are merged into the weights of their base model.

    A model trained over 4-bit weights (QLoRA) is its adapters merged into the weights that were quantised.
    """
    source = Path(options.model)
    source = (checkpoints(source) or [source])[-1]
    try:
        settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise HptError(f"{source}: is neither a checkpoint nor a run with one (config.json is missing)") from None
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{options.folder}: cannot be written: {error.strerror}") from None
    if any(options.folder.iterdir()):
        raise ConfigError(f"{options.folder}: is not empty; name a folder that is, or a new one")
    dtype = settings.get("dtype") or "float32"
    model = load_model(str(source), ModelConfig(path=str(source), dtype=dtype), torch.device("cpu"))
    model.save_pretrained(options.folder)
    load_tokenizer(str(source)).save_pretrained(options.folder)
    console.print(f"{source} -> {options.folder} ({dtype})", soft_wrap=True)
    return 0
