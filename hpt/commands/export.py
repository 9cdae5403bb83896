"""`hpt export`: writes a checkpoint as a model folder that other software reads."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from hpt.commands.arguments import CommandParser
from hpt.support.errors import ConfigError, HptError

HELP = "a checkpoint as a plain model folder"

logger = logging.getLogger(__name__)


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
Write a checkpoint as a Hugging Face folder: safetensors, configuration and tokenizer.
Adapters are merged into the weights of their base model, of QLoRA too."""
    parser.add_argument("model", metavar="CHECKPOINT", help="a checkpoint, or a run's folder for its last one")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what to write: a new or an empty folder")


def run(options: argparse.Namespace) -> int:
    import torch

    from hpt.config.sections.model import ModelConfig
    from hpt.data.tokenizer import load_tokenizer
    from hpt.model.loading import load_model
    from hpt.support.quiet import quiet_libraries
    from hpt.training.checkpoint import checkpoints

    quiet_libraries()
    source = Path(options.model)
    if found := checkpoints(source):
        source = found[-1]
    try:
        settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise HptError(f"{source}: is neither a checkpoint nor a run with one (config.json is missing)") from None
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{options.folder}: cannot be written: {error.strerror}") from None
    if any(options.folder.iterdir()):
        raise ConfigError(f"{options.folder}: is not empty; name a new or an empty folder")
    dtype = settings.get("dtype") or "float32"
    model = load_model(str(source), ModelConfig(path=str(source), dtype=dtype), torch.device("cpu"))
    model.save_pretrained(options.folder)
    load_tokenizer(str(source)).save_pretrained(options.folder)
    logger.info(f"{source} -> {options.folder} ({dtype})")
    return 0
