"""The memory there is: as the recipe says, else of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from hpt.config.schema import Config

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    device: str  # cuda or cpu
    name: str
    gpus: int  # that the run uses
    gpu_bytes: int | None  # of each; None on a CPU
    host_bytes: int | None


def hardware_of(config: Config) -> Hardware:
    """Without a GPU, in the recipe or here, the plan is for a CPU."""
    settings = config.hardware
    here = torch.cuda.is_available() and config.device != "cpu"
    # Without a GPU here the recipe's GPUs are of another machine, and so is the CPU memory beside them.
    elsewhere = settings.gpu_memory_gib is not None and not here
    host = None if elsewhere else _host_bytes()
    if settings.host_memory_gib:
        host = round(settings.host_memory_gib * GIB)
    if settings.gpu_memory_gib:
        size, name = round(settings.gpu_memory_gib * GIB), f"GPU of {settings.gpu_memory_gib:g} GiB"
    elif here:
        index = torch.device(config.device).index if ":" in config.device else 0
        size = torch.cuda.get_device_properties(index or 0).total_memory
        name = f"{torch.cuda.get_device_name(index or 0)} of {size / GIB:.1f} GiB"
    else:
        return Hardware("cpu", "CPU", 1, None, host)
    if config.engine == "local":
        count = 1
    else:
        world = int(os.environ.get("WORLD_SIZE", 0))
        count = settings.gpus or world or (torch.cuda.device_count() if here else 1)
    return Hardware("cuda", name, count, size, host)


def _host_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
