"""The rollouts of a call of `RolloutEngine.generate`, collected as they are finished."""

from __future__ import annotations

from hpt.rollout.engine import OnRollout
from hpt.rollout.rollout import Rollout


class Groups:
    """Room for `n` rollouts of each of `prompts` prompts. on_rollout: as in `generate`."""

    def __init__(self, prompts: int, n: int, on_rollout: OnRollout | None) -> None:
        self._groups: list[list[Rollout | None]] = [[None] * n for _ in range(prompts)]
        self._on_rollout = on_rollout

    def add(self, index: int, number: int, rollout: Rollout) -> None:
        """Keeps rollout `number` of the prompt at `index`, and hands it over."""
        self._groups[index][number] = rollout
        if self._on_rollout:
            self._on_rollout(index, number, rollout)

    def has(self, index: int, number: int) -> bool:
        return self._groups[index][number] is not None

    def finished(self) -> list[list[Rollout]]:
        """What `generate` returns."""
        return [[rollout for rollout in group if rollout] for group in self._groups]
