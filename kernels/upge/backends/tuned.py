"""What `upge tune` found on this user's GPUs: the best kernel of each GEMM, in a small file in the user's cache.

Only a command writes the file. Without it the shipped plan is used.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from .plan import GEMMS, Gemm


def path() -> Path:
    """~/.cache/upge/tuned.json, or in $XDG_CACHE_HOME. Raises RuntimeError where the user has no home."""
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
    """The best kernels by GEMM, nothing where there are none."""
    return entries().get(key, {})


def entries() -> dict[str, dict[str, Gemm]]:
    """All entries of the file, none where there is no file. One that cannot be read is a warning."""
    try:
        file = path()
        changed = file.stat().st_mtime_ns
    except (OSError, RuntimeError):
        return {}
    return _entries(file, changed)


@contextmanager
def writing() -> Iterator[Path]:
    """Hold the file's lock, for which other processes wait. Raises OSError or RuntimeError if it cannot be written."""
    import fcntl  # not on Windows

    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield file


def write(key: str, best: Mapping[str, Gemm]) -> Path:
    """Add an entry to the file, or replace it. Returns the file."""
    with writing() as file:
        rows = {name: {gemm: asdict(value) for gemm, value in gemms.items()} for name, gemms in entries().items()}
        rows[key] = {gemm: asdict(value) for gemm, value in best.items()}
        new = file.with_suffix(".new")
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
