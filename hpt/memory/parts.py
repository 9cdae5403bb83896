"""What one thing holds in memory, at each moment of a step."""

from __future__ import annotations

from dataclasses import dataclass

MOMENTS = ("rollout", "loss", "backward", "update")


@dataclass(frozen=True)
class Part:
    """What one thing holds on a GPU at each moment, and in CPU memory all the time, in bytes."""

    name: str
    rollout: int = 0
    loss: int = 0
    backward: int = 0
    update: int = 0
    host: int = 0

    @classmethod
    def always(cls, name: str, size: int) -> Part:
        return cls(name, size, size, size, size)

    @classmethod
    def training(cls, name: str, size: int) -> Part:
        return cls(name, 0, size, size, size)
