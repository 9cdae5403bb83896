"""Uploads a model's folder to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from hpt.support.errors import ConfigError, HptError
from hpt.support.hub import find_hub


def check_hub_name(name: str) -> str:
    """`name`; ValueError if no model on the hub can have it."""
    if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name):
        raise ValueError("should be NAME or OWNER/NAME of a model on the Hugging Face hub")
    return name


def check_logged_in(setting: str) -> None:
    """ConfigError if this machine has no token of the hub, which `setting` needs."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError(f"{setting} needs a token of the Hugging Face hub: hf auth login, or HF_TOKEN=...")


def push_folder(folder: Path, name: str, *, private: bool) -> str:
    """Uploads a folder as the model `name`, new or not; returns its address.

    private: of a new model. HptError where the hub does not answer or refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    try:
        if not find_hub():
            raise HptError("the hub does not answer, or HF_HUB_OFFLINE is set")
        api = HfApi()
        model = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=model.repo_id, folder_path=folder, commit_message="Trained by hpt")
    except Exception as error:  # versions of huggingface_hub use different HTTP libraries
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HptError(
            f"{folder} could not be pushed to the hub as {name!r}: {reason}. The folder is complete; push it with: "
            f"hf upload {name} {folder}"
        ) from error
    return str(model)
