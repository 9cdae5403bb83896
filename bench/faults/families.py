"""All cases, a file a family."""

from __future__ import annotations

from . import changes, damage, disks, kills, places
from .cases import Case


def cases(count: int) -> list[Case]:
    """count: of kills."""
    return [*kills.cases(count), *disks.cases(), *damage.cases(), *places.cases(), *changes.cases()]
