"""What this machine has for hpt: its packages, memory and disk."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from upge.diagnosis.finding import Finding, fault, note

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

GIB = 2**30


@dataclass(frozen=True)
class Package:
    """A package that hpt uses. The module is one whose import loads what may be broken."""

    name: str
    module: str
    install: str
    needed: bool = False


PACKAGES = (
    Package("transformers", "transformers", "pip install hpt", needed=True),
    Package("datasets", "datasets", "pip install hpt", needed=True),
    Package("math-verify", "math_verify", "pip install hpt", needed=True),
    Package("vllm", "vllm.engine.arg_utils", 'pip install "hpt[vllm]"'),
    Package("vllm-bnb-plugin", "vllm_bnb_plugin", 'pip install "hpt[vllm-4bit]"'),
    Package("deepspeed", "deepspeed", 'pip install "hpt[deepspeed]"'),
    Package("kernels", "kernels", 'pip install "hpt[flash]", for prebuilt flash attention'),
    Package("flash-attn", "flash_attn", "pip install flash-attn --no-build-isolation, which compiles"),
    Package("liger-kernel", "liger_kernel.chunked_loss", 'pip install "hpt[gpu]"'),
    Package("bitsandbytes", "bitsandbytes", 'pip install "hpt[peft]"'),
    Package("peft", "peft", 'pip install "hpt[peft]"'),
)


def missing(package: Package) -> Finding:
    if package.needed:
        return fault(package.name, f"is not installed: {package.install}")
    return note(package.name, f"not installed ({package.install})")


def import_package(name: str, module: str) -> Iterator[Finding]:
    """Import an installed package, which fails where it is broken, and compare its version with what hpt asks for."""
    importlib.import_module(module)
    installed, wanted = metadata.version(name), required_versions(name)
    fits = wanted.contains(installed, prereleases=True)
    yield note(name, installed if fits else f"{installed}; hpt is tested with {wanted}")


def required_versions(name: str) -> SpecifierSet:
    """The versions that hpt or one of its extras asks for; all where it does not say."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        requirements = [Requirement(line) for line in metadata.requires("hpt") or []]
    except metadata.PackageNotFoundError:  # hpt is used without being installed
        requirements = []
    return next((found.specifier for found in requirements if found.name == name), SpecifierSet())


def resources() -> list[Finding]:
    """CPUs, memory, and the disks of runs and of downloaded models."""
    found = [note("CPUs", str(os.cpu_count()))]
    if memory := _memory():
        found.append(note("memory", memory))
    folders = {"this folder": Path.cwd()}
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:  # comes with transformers, whose absence is a finding of its own
        pass
    else:
        folders["downloaded models"] = Path(HF_HUB_CACHE)
    for what, folder in folders.items():
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        found.append(note(f"disk of {what}", f"{free / GIB:.1f} GiB free ({folder})"))
    return found


def _memory() -> str:
    """Of the whole machine, where Linux says it."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return ""
    sizes = dict(line.split(":") for line in path.read_text().splitlines())
    total, free = (int(sizes[name].split()[0]) * 1024 / GIB for name in ("MemTotal", "MemAvailable"))
    return f"{free:.1f} of {total:.1f} GiB free"
