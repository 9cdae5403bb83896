"""All cases, a file a family."""

from __future__ import annotations

from . import changes, damage, disks, functions, kills, memory, places, ranks, servers
from .cases import Case


def cases(count: int) -> list[Case]:
    """The long ones first, so that none is left at the end. count: of kills."""
    families = (functions, servers, disks, damage, places, changes, memory)
    return [*ranks.cases(), *kills.cases(count), *(case for family in families for case in family.cases())]
