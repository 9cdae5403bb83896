"""The device that a setting means."""

from __future__ import annotations

import re
import resource

import torch

from hpt.support.errors import ConfigError


def pick_device(name: str, *, here: bool = True) -> torch.device:
    """auto: a GPU if there is one. ConfigError if there is no such device.

    here: False for a device that is used on another machine, which is not looked for.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise ConfigError(f"device = {name!r}: allowed are auto, cpu, cuda and cuda:N")
    device = torch.device(name)
    if here and device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise ConfigError(f"device = {name!r}: torch sees no GPU; allowed here are auto and cpu")
        if (device.index or 0) >= count:
            raise ConfigError(f"device = {name!r}: torch sees {count} GPUs; allowed here are up to cuda:{count - 1}")
    return device


def peak_memory_gib() -> float:
    """The most memory in GiB that was in use so far: tensors on this process's GPU, else all of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
