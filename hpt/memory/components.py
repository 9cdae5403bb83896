"""The parts of a memory plan: what each component of a run holds in each phase of a step."""

from __future__ import annotations

from dataclasses import dataclass

PHASES = ("rollout", "loss", "backward", "update")
"""The phases of a step that memory is counted in; `loss` is the forward pass with the loss."""


@dataclass(frozen=True)
class Component:
    """Bytes of one component (weights, activations, ...): on each GPU by phase, and in CPU memory in every phase."""

    name: str
    rollout: int = 0
    loss: int = 0
    backward: int = 0
    update: int = 0
    host: int = 0
    preallocated: bool = False  # a fixed share that its owner never exceeds, gaps between its blocks included

    @classmethod
    def in_every_phase(cls, name: str, size: int) -> Component:
        """`size` bytes in all phases."""
        return cls(name, rollout=size, loss=size, backward=size, update=size)

    @classmethod
    def in_training(cls, name: str, size: int, *, preallocated: bool = False) -> Component:
        """`size` bytes in all phases but the rollouts."""
        return cls(name, loss=size, backward=size, update=size, preallocated=preallocated)
