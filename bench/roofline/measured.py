"""The times of kernels that `python -m bench gpu` measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

BARE, SUM = "three bare GEMMs", "sum"
UNNAMED = "zeros of dh"  # PyTorch's fill, whose kernel has no name of ours


@dataclass(frozen=True)
class Measured:
    """Milliseconds of a call's kernels, by their names in the model, and of SUM and BARE where all parts are there.

    note: why there are none, "" if there are some.
    """

    milliseconds: dict[str, float] = field(default_factory=dict)
    note: str = ""


def read_measured(file: Path, head: str, tokens: int, dtype: str, device: str, kernels: Iterable[str]) -> Measured:
    """What was measured of the same call on this device. kernels: those that the model predicts."""
    if not file.exists():
        return Measured(note="there is no bench/results/gpu/gpu.json")
    try:
        results = json.loads(file.read_text())
        settings = results["settings"]
        found = (settings["shape"], settings["tokens"], settings["dtype"], settings["GPU"])
        rows = [(str(row["kernel"]), float(row["ms"])) for row in results["kernels"]]
        gemms = [float(row["ms"]) * tokens / row["rows"] for row in results["gemms"]]  # each was measured over a chunk
    except (ValueError, KeyError, TypeError) as error:
        return Measured(note=f"{file} cannot be read: {type(error).__name__}: {error}")
    if found != (head, tokens, dtype, device):
        return Measured(note="the results are of {}, {} tokens, {}, on {}".format(*found))
    return Measured(_by_kernel(rows, gemms, set(kernels) - {UNNAMED}))


def _by_kernel(rows: list[tuple[str, float]], gemms: list[float], kernels: set[str]) -> dict[str, float]:
    times: dict[str, float] = {}
    for kernel, ms in rows:
        name, is_kernel, _ = kernel.partition("_kernel")
        if is_kernel:
            name = name.removesuffix("_descriptors")
            times[name] = times.get(name, 0.0) + ms
    if kernels <= times.keys():
        times[SUM] = sum(ms for _, ms in rows)  # and what PyTorch launched besides
    if len(gemms) == 3:
        times[BARE] = sum(gemms)
    return times
