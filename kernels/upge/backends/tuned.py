"""What `upge tune` found on this user's GPUs: the best kernel of each GEMM, in a small file in the user's cache.

Only a command writes the file. Without it the shipped plan is used.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from .plan import GEMMS, Gemm


def path() -> Path:
    """~/.cache/upge/tuned.json, or in $XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "upge" / "tuned.json"


def key_for(device: torch.device, dtype: torch.dtype, vocabulary: int, width: int) -> str:
    """What the best kernels depend on. They do not depend on the number of tokens."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    dtype_name = str(dtype).removeprefix("torch.")
    return f"{gpu}, triton {_triton_version()}, {dtype_name}, V {vocabulary}, D {width}"


@lru_cache(maxsize=1)
def _triton_version() -> str:
    return version("triton")


def read(key: str) -> dict[str, Gemm]:
    """The best kernels by GEMM, nothing where there are none. A file that cannot be read is a warning."""
    file = path()
    try:
        changed = file.stat().st_mtime_ns
    except OSError:
        return {}
    return _entries(file, changed).get(key, {})


def write(key: str, best: Mapping[str, Gemm]) -> Path:
    """Add an entry to the file, or replace it. Returns the file."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    entries = _entries(file, file.stat().st_mtime_ns) if file.exists() else {}
    rows = {name: {gemm: asdict(value) for gemm, value in gemms.items()} for name, gemms in entries.items()}
    rows[key] = {gemm: asdict(value) for gemm, value in best.items()}
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(rows, indent=1) + "\n")
    new.replace(file)
    return file


@lru_cache(maxsize=4)
def _entries(file: Path, changed: int) -> dict[str, dict[str, Gemm]]:
    """All entries of the file as it was changed at this time."""
    try:
        rows = json.loads(file.read_text())
        return {
            name: {gemm: Gemm(**value) for gemm, value in gemms.items() if gemm in GEMMS}
            for name, gemms in rows.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"{file}: cannot be read ({error}), so the shipped plan is used", stacklevel=2)
        return {}
