"""What a check found."""

from __future__ import annotations

from typing import TypedDict


class Finding(TypedDict):
    """One thing that was looked at."""

    what: str
    found: str
    held: bool | None  # whether it is as it should be; None for what is neither right nor wrong


def note(what: str, found: str) -> Finding:
    return {"what": what, "found": found, "held": None}


def fault(what: str, found: str) -> Finding:
    return {"what": what, "found": found, "held": False}


def at_most(what: str, error: float, bound: float) -> Finding:
    """An error and its bound. NaN is above any bound."""
    return {"what": what, "found": f"error {error:.1e}, at most {bound:.0e}", "held": error <= bound}


def same_bits(what: str, same: bool) -> Finding:
    return {"what": what, "found": "the same bits" if same else "other bits", "held": same}
