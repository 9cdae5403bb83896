"""The memory that a run may use: what the recipe's `hardware` says, else what this machine has."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from hpt.config.schema import Config

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """GPUs and CPU memory of one machine."""

    device: str  # cuda or cpu
    name: str
    gpus: int  # how many the run uses
    gpu_bytes: int | None  # memory of each GPU; None on a CPU
    host_bytes: int | None  # CPU memory; None if unknown


def hardware_of(config: Config) -> Hardware:
    """The hardware of a run: a CPU if neither the recipe nor this machine has a GPU."""
    settings = config.hardware
    gpu_here = torch.cuda.is_available() and config.device != "cpu"
    # If the recipe names GPUs and this machine has none, the run is for another machine, whose CPU memory is unknown.
    elsewhere = settings.gpu_memory_gib is not None and not gpu_here
    host = None if elsewhere else _host_bytes()
    if settings.host_memory_gib:
        host = round(settings.host_memory_gib * GIB)
    if settings.gpu_memory_gib:
        size, name = round(settings.gpu_memory_gib * GIB), f"GPU of {settings.gpu_memory_gib:g} GiB"
    elif gpu_here:
        index = torch.device(config.device).index if ":" in config.device else 0
        size = torch.cuda.get_device_properties(index or 0).total_memory
        name = f"{torch.cuda.get_device_name(index or 0)} of {size / GIB:.1f} GiB"
    else:
        return Hardware("cpu", "CPU", 1, None, host)
    if config.engine == "local":
        count = 1
    else:
        world = int(os.environ.get("WORLD_SIZE", 0))
        count = settings.gpus or world or (torch.cuda.device_count() if gpu_here else 1)
    return Hardware("cuda", name, count, size, host)


def _host_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
