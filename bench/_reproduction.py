"""What `bench reproduce` found: one table, figures and the records they were made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """One training run. Its demonstrations are "clean" or "wrong"; gamma 0 is the method's own gate."""

    method: str
    lr: float
    seed: int
    demonstrations: str = "clean"
    gamma: float = 0.0

    @property
    def name(self) -> str:
        gate = f"-gamma{self.gamma:g}" if self.gamma else ""
        return f"{self.demonstrations}-{self.method}{gate}-lr{self.lr:g}-seed{self.seed}"
