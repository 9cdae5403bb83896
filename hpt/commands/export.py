"""`hpt export`: writes a checkpoint as a model folder that other software reads, and pushes it to the hub."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from hpt.commands.arguments import CommandParser
from hpt.support.errors import ConfigError

HELP = "a checkpoint as a plain model folder, with a model card"

logger = logging.getLogger(__name__)


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
Write a checkpoint as a Hugging Face folder: safetensors, configuration, tokenizer, and a model card (README.md) made
from its run. Adapters are merged into the weights of their base model, of QLoRA too."""
    parser.add_argument("model", metavar="CHECKPOINT", help="a checkpoint, or a run's folder for its last one")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what to write: a new or an empty folder")
    parser.add_argument(
        "--push-to-hub", metavar="NAME", help="then upload the folder as the model NAME or OWNER/NAME of the hub"
    )
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: make a new model private")


def run(options: argparse.Namespace) -> int:
    logger.info(f"Exporting {options.model}, loading PyTorch")
    from hpt.api.export import export_checkpoint
    from hpt.support.upload import check_hub_name, check_logged_in, push_folder

    if options.push_to_hub:
        try:
            check_hub_name(options.push_to_hub)
        except ValueError as error:
            raise ConfigError(f"--push-to-hub {options.push_to_hub!r}: {error}") from None
        check_logged_in("--push-to-hub")
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{options.folder}: cannot be written: {error.strerror}") from None
    if any(options.folder.iterdir()):
        raise ConfigError(f"{options.folder}: is not empty; name a new or an empty folder")
    export_checkpoint(Path(options.model), options.folder)
    if options.push_to_hub:
        address = push_folder(options.folder, options.push_to_hub, private=options.private)
        logger.info(f"Pushed {options.folder} to {address}")
    return 0
