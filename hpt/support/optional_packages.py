"""Packages that only some settings need."""

from __future__ import annotations

import importlib.util

from hpt.support.errors import ConfigError


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def require(package: str, setting: str, install: str) -> None:
    """ConfigError where `package`, which `setting` asks for, is missing; `install` is what pip is to install."""
    if not installed(package):
        raise ConfigError(f"{setting} needs the package {package}: pip install {install}")
