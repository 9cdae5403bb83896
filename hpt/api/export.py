"""Exports a checkpoint as a model folder that other software reads, and pushes that of a finished run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpt.support.errors import HptError

PUSHED = "export"
"""The folder in a run's that `checkpoint.push_to_hub` exports to."""

logger = logging.getLogger(__name__)


def export_checkpoint(source: Path, folder: Path) -> None:
    """Fills an empty `folder` from a checkpoint or the last one of a run: weights, adapters merged, and the tokenizer.

    A checkpoint in its run's folder also gives a model card. HptError where there is no checkpoint, where its files are
    not what was written, and where `folder` cannot be written.
    """
    import torch

    from hpt.config.sections.model import ModelConfig
    from hpt.data.tokenizer import load_tokenizer
    from hpt.model.loading import load_model
    from hpt.records.checkpoints import checkpoints, step_of
    from hpt.records.files import CONFIG
    from hpt.report.model_card import write_model_card
    from hpt.support.quiet import quiet_libraries
    from hpt.training.checkpoint import check_files

    quiet_libraries()
    if not source.is_dir():
        raise HptError(f"{source}: there is no such folder; name a checkpoint or a run")
    if found := checkpoints(source):
        source = found[-1]
    try:
        settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise HptError(f"{source}: is neither a checkpoint nor a run with one (config.json is missing)") from None
    check_files(source)
    dtype = settings.get("dtype") or "float32"
    model = load_model(str(source), ModelConfig(path=str(source), dtype=dtype), torch.device("cpu"))
    tokenizer = load_tokenizer(str(source))
    checkpoint = source.resolve()
    run_folder = checkpoint.parent.parent
    with _emptied_on_failure(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if checkpoint in checkpoints(run_folder) and (run_folder / CONFIG).is_file():
            write_model_card(run_folder, step_of(checkpoint), folder)
    logger.info(f"Exported {source} ({dtype})")


@contextmanager
def _emptied_on_failure(folder: Path) -> Iterator[None]:
    """Leaves `folder` empty where it cannot be filled, so that the export can be tried again; HptError then."""
    try:
        yield
    except Exception as error:  # safetensors and tokenizers have exceptions of their own for a full disk
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        raise HptError(f"the model cannot be written to {folder}: {error}") from error


def push_finished_run(run_folder: Path) -> None:
    """Exports the last checkpoint of a run to RUN/export and pushes that, if `checkpoint.push_to_hub` says so.

    A hub that does not take it is a warning: the run has finished, and the export is there.
    """
    from hpt.config.recipe import load_config
    from hpt.records.files import CONFIG
    from hpt.support.files import folder_atomically
    from hpt.support.upload import push_folder

    settings = load_config(run_folder / CONFIG).checkpoint
    if settings.push_to_hub is None:
        return
    with folder_atomically(run_folder / PUSHED) as folder:
        export_checkpoint(run_folder, folder)
    try:
        address = push_folder(run_folder / PUSHED, settings.push_to_hub, private=settings.hub_private)
    except HptError as error:
        logger.warning(str(error))
        return
    logger.info(f"Pushed {run_folder / PUSHED} to {address}")
