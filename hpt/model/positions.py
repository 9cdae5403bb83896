"""Check that the model has enough positions for the longest sequences."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoConfig

from hpt.support.errors import ConfigError

logger = logging.getLogger(__name__)


def check_positions(path: str, needed: Mapping[str, int], *, trust_remote_code: bool = False) -> None:
    """Compare the tokens needed with the model's max_position_embeddings, before any weights are loaded.

    needed: tokens of the longest sequence, by what it consists of, as in "a prompt and rollout.max_tokens = 8192".
    ConfigError if the positions are learned, since there are no others. A warning if they are rotary: those can be
    exceeded, with worse results.
    """
    try:
        config = AutoConfig.from_pretrained(str(Path(path).expanduser()), trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return  # loading the model will report what is wrong with it
    text_config = config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        return
    for what, length in needed.items():
        if length <= limit:
            continue
        message = f"{what} make {length:,} tokens; the model has {limit:,} positions (max_position_embeddings)"
        if not getattr(text_config, "rope_parameters", None):
            raise ConfigError(f"{message}. Lower the limit, or leave long questions out")
        logger.warning(f"{message} and may do badly beyond them")
