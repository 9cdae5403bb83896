"""Writes the question files and the model folder of a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hpt.config.schema import Config
from hpt.support.errors import ConfigError, HptError
from hpt.support.files import folder_atomically, make_folder, write_file_atomically


def check_places(config: Config, *shared: Path) -> None:
    """ConfigError where a path that the user has changed leads nowhere: nothing is made there.

    A recipe's files are made in its run's folder, or wherever model and data are in one folder, or at the places that
    its runs share.
    """
    given = {"model.path": config.model.path, "data.train": config.data.train, "data.eval": config.data.eval}
    places = {key: Path(path) for key, path in given.items() if isinstance(path, str)}
    if len({place.parent for place in places.values()}) == 1:
        return
    for key, place in places.items():
        if not place.exists() and place not in shared and place.parent != Path(config.output):
            raise ConfigError(
                f"{key} = {str(place)!r}: there is no such file or folder; this recipe makes what is missing in its "
                f"run's folder, {config.output}, only"
            )


def write_missing_questions(
    config: Config, train: Sequence[dict[str, str]], held_out: Sequence[dict[str, str]]
) -> None:
    """Writes `data.train` and `data.eval` of `config` as JSONL, each only where the file is missing."""
    for path, questions in ((config.data.train, train), (config.data.eval, held_out)):
        # Data in another form than a path is the user's own.
        if isinstance(path, str) and not Path(path).exists():
            make_folder(Path(path).parent)
            lines = [json.dumps(question) + "\n" for question in questions]
            write_file_atomically(Path(path), "".join(lines).encode())


@contextmanager
def model_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `folder` once it is complete. HptError where it cannot be written."""
    try:
        with folder_atomically(folder) as partial:
            yield partial
    except Exception as error:  # safetensors and tokenizers have exceptions of their own for a full disk
        raise HptError(f"the model cannot be written to {folder}: {error}") from error


def save_model_folder(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a model and its tokenizer as a Hugging Face folder; as `model_folder`."""
    with model_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
