"""When the Hugging Face hub is asked: not for a path that looks local, and not again where it does not answer."""

from __future__ import annotations

import difflib
import logging
import sys
from functools import lru_cache
from pathlib import Path

TIMEOUT = 10.0  # seconds

logger = logging.getLogger(__name__)


def missing_local_path(name: str) -> str | None:
    """What to say of `name`, of which there is no local file or folder, if it can only be meant as one; else None.

    A hub name is NAME or OWNER/NAME. "runs/mine" is one too, but not where there is a local folder "runs".
    """
    path = Path(name).expanduser()
    in_a_folder = "/" in name and Path(name.partition("/")[0]).is_dir()
    if not (name.startswith(("/", "./", "../", "~")) or name.endswith("/") or name.count("/") > 1 or in_a_folder):
        return None
    if path.exists():
        return f"{path.resolve()} is {'a file, not a folder' if path.is_file() else 'no regular file'}"
    existing = next(parent for parent in path.parents if parent.is_dir())
    missing = path.relative_to(existing).parts[0]
    near = difflib.get_close_matches(missing, [entry.name for entry in existing.iterdir()], n=1)
    hint = f"; did you mean {existing / near[0]}?" if near else ""
    return f"there is no such file or folder ({existing.resolve()} has no {missing!r}){hint}"


def cached_version(name: str) -> str:
    """The version (a commit) of a model of the hub that is cached here; "unknown" where none is."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no hub name
        return "unknown"
    return Path(found).parent.name if isinstance(found, str) else "unknown"


@lru_cache(maxsize=1)
def find_hub() -> bool:
    """Whether the hub answers. Where it does not, its libraries are set to use only what is cached.

    It is asked once, with a limit of time, since its libraries retry every file for half a minute.

    HF_HUB_OFFLINE=1 skips the request; proxies and HF_ENDPOINT are respected.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # versions of huggingface_hub use different HTTP libraries
        logger.warning(
            f"the Hugging Face hub ({constants.ENDPOINT}) does not answer: {str(error) or type(error).__name__}; "
            "only what is cached can be used"
        )
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:  # it copies the constant when it is imported
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True
        return False
    return True
