"""The Hugging Face hub, asked once whether it answers: its libraries would try each file for half a minute."""

from __future__ import annotations

import sys
from functools import lru_cache

TIMEOUT = 10.0  # seconds


@lru_cache(maxsize=1)
def find_hub() -> bool:
    """Whether the hub answers. Where it does not, its libraries are told to use what they have cached and nothing else.

    A note on stderr says so. HF_HUB_OFFLINE=1 spares the question; proxies and HF_ENDPOINT are heeded.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # the HTTP library's own, which differ between versions of huggingface_hub
        print(
            f"The Hugging Face hub ({constants.ENDPOINT}) does not answer: {error or type(error).__name__}. "
            "Only what is cached can be used.",
            file=sys.stderr,
        )
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it copied the constant when it was imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False
    return True
