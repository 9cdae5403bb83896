"""The times of kernels that `python -m bench gpu` measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BARE = "three bare GEMMs"


def read_measured(file: Path, head: str, tokens: int, dtype: str, gpu: str) -> dict[str, float]:
    """Milliseconds of a call's kernels, by their names in the model, and of BARE. None of another call's."""
    if not file.exists():
        return {}
    results: dict[str, Any] = json.loads(file.read_text())
    settings = results["settings"]
    wanted = {"shape": head, "tokens": tokens, "dtype": dtype}
    if any(settings.get(key) != value for key, value in wanted.items()) or gpu.split()[0] not in settings["GPU"]:
        return {}
    found: dict[str, float] = {}
    for row in results["kernels"]:
        name, is_kernel, _ = row["kernel"].partition("_kernel")
        if is_kernel:
            name = name.removesuffix("_descriptors")
            found[name] = found.get(name, 0.0) + row["ms"]
    if results["gemms"]:  # each over a chunk
        found[BARE] = sum(row["ms"] * tokens / row["rows"] for row in results["gemms"])
    return found
