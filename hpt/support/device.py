"""The device that a setting means."""

from __future__ import annotations

import resource

import torch

from hpt.support.errors import ConfigError


def pick_device(name: str, *, here: bool = True) -> torch.device:
    """auto: a GPU if there is one. ConfigError if there is no such device.

    here: False for a device that is used on another machine, which is not looked for.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device = {name!r}: allowed are auto, cpu, cuda and cuda:N") from None
    if here and device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device = {name!r}: torch sees no GPU; allowed here are auto and cpu")
    return device


def peak_memory_gib() -> float:
    """The most memory in GiB that was in use so far: tensors on this process's GPU, else all of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
