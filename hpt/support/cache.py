"""The user's cache folder: what hpt can make again, but not quickly."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "HPT_CACHE"
"""The environment variable that names another folder."""


def cache_folder() -> Path:
    """$HPT_CACHE, else hpt/ in $XDG_CACHE_HOME, else ~/.cache/hpt."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hpt"
