"""What the kernels should reach on a GPU, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_OF_GEMMS, MAX_OF_GEMMS_AT_HALF, MAX_EXTRA_BYTES = 1.15, 0.6, 1.5 * 2**30


@dataclass(frozen=True)
class Target:
    """A number that should be at most its limit."""

    what: str
    wanted: str
    measured: str
    met: bool


def targets(data: Mapping[str, Any]) -> Iterator[Target]:
    """From the report's rows, those that were measured: time and memory on the main head, and time beside each peer."""
    cases = set()
    for row in data["methods"]:
        case, method = row["case"], row["method"]
        if row["shape"] != data["settings"]["shape"] or "seconds" not in row:
            continue
        if method == "upge" and case not in cases:  # measured again beside the peers
            cases.add(case)
            yield _target(f"{case}: time of three bare GEMMs", row["of_gemms"], MAX_OF_GEMMS, " x")
            yield _target(f"{case}: memory", row["extra_bytes"], MAX_EXTRA_BYTES, " GiB", 2**30)
        elif method not in ("upge", "gemms"):
            yield _target(f"{case}: time of {method}", row["upge_of_it"], 1.0, " x")
    for row in data["no_signal"]:
        if row["no_signal"] == 0.5:
            what = "half of the tokens at A = 0: time of GEMMs"
            yield _target(what, row["of_gemms"], MAX_OF_GEMMS_AT_HALF, " x")


def _target(what: str, measured: float, limit: float, unit: str, scale: float = 1.0) -> Target:
    """Both numbers are shown divided by `scale`, in `unit`."""
    return Target(what, f"at most {limit / scale:.2f}{unit}", f"{measured / scale:.2f}{unit}", measured <= limit)
