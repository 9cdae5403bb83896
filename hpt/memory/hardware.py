"""The memory that a run may use: what the recipe's `hardware` says, else what this machine has."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from hpt.config.schema import Config
from hpt.support.cards import CARDS, CardName, card_of_device, typical_card
from hpt.support.device import pick_device

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """GPUs and CPU memory of one machine."""

    device: str  # cuda or cpu
    name: str
    gpus: int  # how many the run uses
    gpu_bytes: int | None  # memory of each GPU; None on a CPU
    host_bytes: int | None  # CPU memory; None if unknown
    card: CardName | None = None  # of each GPU
    card_assumed: bool = False  # neither the recipe nor this machine says which card it is


def hardware_of(config: Config) -> Hardware:
    """The hardware of a run: a CPU if neither the recipe nor this machine has a GPU."""
    settings = config.hardware
    device = pick_device(config.device, here=torch.cuda.is_available())
    gpu_here = torch.cuda.is_available() and device.type == "cuda"
    # If the recipe names GPUs and this machine has none, the run is for another machine, whose CPU memory is unknown.
    elsewhere = (settings.gpu_memory_gib or settings.gpu) is not None and not gpu_here
    host = None if elsewhere else _host_bytes()
    if settings.host_memory_gib:
        host = round(settings.host_memory_gib * GIB)
    card = settings.gpu
    if gpu_here:
        here = torch.cuda.get_device_properties(device)
        card = card or card_of_device(here.name, here.total_memory)
    if settings.gpu_memory_gib:
        size, name = round(settings.gpu_memory_gib * GIB), f"GPU of {settings.gpu_memory_gib:g} GiB"
    elif settings.gpu:
        size = round(CARDS[settings.gpu].memory)
        name = f"{settings.gpu} of {size / GIB:.1f} GiB"
    elif gpu_here:
        size = here.total_memory
        name = f"{here.name} of {size / GIB:.1f} GiB"
    else:
        return Hardware("cpu", "CPU", 1, None, host)
    if config.engine == "local":
        count = 1
    else:
        world = int(os.environ.get("WORLD_SIZE", 0))
        count = settings.gpus or world or (torch.cuda.device_count() if gpu_here else 1)
    return Hardware("cuda", name, count, size, host, card or typical_card(size), card is None)


def _host_bytes() -> int | None:
    """This machine's memory, or less where a container or a batch system gives this process less."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return min([machine, *_cgroup_limits()])


def _cgroup_limits(root: Path = Path("/")) -> list[int]:
    """Bytes that Linux's control groups, version 1 or 2, allow this process, those above its own included."""
    limits = []
    with contextlib.suppress(OSError):  # no Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                top, name = root / "sys/fs/cgroup", "memory.max"
            elif "memory" in controllers.split(","):
                top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
            else:
                continue
            group = top / path.strip("/")  # not there in a container that sees its own group as the top one
            for each in (group, *group.parents):
                if each.is_relative_to(top) and (each / name).is_file():
                    text = (each / name).read_text().strip()
                    if text != "max":
                        limits.append(int(text))
    return limits
