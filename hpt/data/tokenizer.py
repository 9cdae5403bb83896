"""Load a model's tokenizer and the tokens that end its responses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hpt.support.errors import HptError
from hpt.support.hub import find_hub, missing_local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face folder or hub name; HptError if there is none."""
    from transformers import AutoTokenizer

    folder = Path(path).expanduser()
    # Without its files transformers builds an empty tokenizer for some models (Qwen2) rather than fail.
    if folder.is_dir() and not any(any(folder.glob(name)) for name in VOCABULARY_FILES):
        raise HptError(
            f"model.path: the folder {path} has no tokenizer: expected one of {', '.join(VOCABULARY_FILES)}, "
            "as tokenizer.save_pretrained writes them"
        )
    if not folder.is_dir():
        if problem := missing_local_path(path):
            raise HptError(f"model.path = {path!r}: {problem}")
        find_hub()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else path, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # broken JSON, a missing library, an unreachable hub, a model without a tokenizer
        reason = str(error).strip().splitlines()[:1] or [""]
        raise HptError(
            f"model.path: no tokenizer could be loaded from {path}: {type(error).__name__}: {reason[0]}"
        ) from error
    if len(tokenizer) < 2:
        raise HptError(f"model.path: the tokenizer of {path} has {len(tokenizer)} tokens: its vocabulary is missing")
    return tokenizer


def generation_ends(path: str) -> list[int]:
    """The end tokens that a model's generation_config.json names; none if there is no such file.

    HptError where it cannot be read.
    """
    from transformers import GenerationConfig

    file = Path(path).expanduser() / "generation_config.json"
    try:
        ends = GenerationConfig.from_pretrained(str(file.parent)).eos_token_id
    except Exception as error:
        if not file.exists() and isinstance(error, OSError):
            return []
        raise HptError(f"{file} cannot be read: {error}") from error
    if ends is None:
        return []
    if not isinstance(ends, list):
        ends = [ends]
    if not all(isinstance(end, int) for end in ends):
        raise HptError(f"{file}: eos_token_id must be an integer or a list of them, got {ends!r}")
    return ends


def model_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """What error messages call the tokenizer's model."""
    return tokenizer.name_or_path or "this model"
