"""Checks once whether the Hugging Face hub answers, since its libraries retry every file for half a minute."""

from __future__ import annotations

import sys
from functools import lru_cache

TIMEOUT = 10.0  # seconds


@lru_cache(maxsize=1)
def find_hub() -> bool:
    """Whether the hub answers. Where it does not, its libraries are set to use only what is cached.

    That is noted on stderr. HF_HUB_OFFLINE=1 skips the request; proxies and HF_ENDPOINT are respected.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # versions of huggingface_hub use different HTTP libraries
        print(
            f"The Hugging Face hub ({constants.ENDPOINT}) does not answer: {error or type(error).__name__}. "
            "Only what is cached can be used.",
            file=sys.stderr,
        )
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it copies the constant when it is imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False
    return True
