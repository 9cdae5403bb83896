"""The software and the GPUs of this machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import TypedDict

import torch

from .finding import Finding, fault, note

INSTALL_TRITON = 'pip install "upge[triton]"'


class Device(TypedDict):
    """A GPU that PyTorch can use. Memory in bytes."""

    name: str
    capability: list[int]
    processors: int
    memory: int
    free: int


def devices() -> Iterator[Device]:
    """The GPUs that PyTorch can use. Meant for a process of its own, since a broken driver may hang."""
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        torch.ones(1, device=f"cuda:{index}").sum().item()
        free, memory = torch.cuda.mem_get_info(index)
        yield {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "processors": properties.multi_processor_count,
            "memory": memory,
            "free": free,
        }


def version(distribution: str) -> str | None:
    """The installed version, or None. Imports nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def software(on_gpu: bool) -> list[Finding]:
    """Versions. On a machine with a GPU, Triton must be one of them."""
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    found = [note("python", platform.python_version()), note("torch", f"{torch.__version__}, {cuda}")]
    if driver := nvidia_smi("driver_version"):
        found.append(note("driver", driver[0][0]))
    triton = version("triton")
    if triton is not None:
        found.append(note("triton", triton))
    elif on_gpu:
        found.append(fault("triton", f"is not installed, so GPUs run the slower torch backend: {INSTALL_TRITON}"))
    return found


def describe(device: Device) -> list[Finding]:
    """The GPU that PyTorch takes first."""
    gib, (major, minor) = 2**30, device["capability"]
    found = [
        note("GPU", f"{device['name']}, sm_{major}{minor}, {device['processors']} SMs"),
        note("memory", f"{device['free'] / gib:.1f} of {device['memory'] / gib:.1f} GiB free"),
    ]
    if clocks := nvidia_smi("clocks.sm", "clocks.max.sm", "power.limit"):
        now, most, power = clocks[0]
        found.append(note("clock", f"{now} of {most} MHz, power limit {power} W"))
    return found


def why_no_gpu() -> Finding:
    """A machine without a GPU is fine. One with a GPU that PyTorch cannot use is not."""
    seen = nvidia_smi("name", "driver_version")
    if not seen:
        return note("GPU", "PyTorch sees none: the torch backend is checked, on the CPU")
    name, driver = seen[0]
    build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    return fault(
        "GPU", f"there is a {name} (driver {driver}), but PyTorch cannot use it: torch {torch.__version__} {build}"
    )


def nvidia_smi(*fields: str) -> list[list[str]]:
    """These fields of `nvidia-smi --query-gpu`, for each GPU; nothing where the program is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return _cells(done.stdout.splitlines())


def _cells(lines: Sequence[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
