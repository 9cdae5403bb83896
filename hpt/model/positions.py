"""Check that the model has enough positions for the longest sequences."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedConfig

from hpt.config.sections.model import ModelConfig
from hpt.support.errors import ConfigError
from hpt.support.model_config import read_model_config

logger = logging.getLogger(__name__)


def check_positions(settings: ModelConfig, needed: Mapping[str, int]) -> None:
    """Compare the tokens needed with the model's max_position_embeddings, before any weights are loaded.

    needed: tokens of the longest sequence, by what it consists of, as in "a prompt and rollout.max_tokens = 8192".
    ConfigError if the positions are learned, since there are no others. A warning if they are rotary: those can be
    exceeded, with worse results. ConfigError also where `model.config` does not fit the model.
    """
    path = str(Path(settings.path).expanduser())
    try:
        config = read_model_config(path, settings.config, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError):
        return  # loading the model will report what is wrong with it
    for message in exceeded_positions(config, needed):
        if not getattr(config.get_text_config(), "rope_parameters", None):
            raise ConfigError(f"{message}. Lower the limit, or leave long questions out")
        logger.warning(f"{message} and may do badly beyond them; model.config can raise them, together with rope_theta")


def exceeded_positions(config: PreTrainedConfig, needed: Mapping[str, int]) -> list[str]:
    """A message for each entry of `needed` that takes more positions than there are; `needed` as above."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return []
    return [
        f"{what} make {length:,} tokens; the model has {limit:,} positions (max_position_embeddings)"
        for what, length in needed.items()
        if length > limit
    ]
