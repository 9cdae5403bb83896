"""Seeds derived from the run's, the step, the purpose and the rank: a resumed run draws what an unbroken one would."""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["train", "rollout", "eval", "data", "rest"]
_PURPOSES: tuple[Purpose, ...] = ("train", "rollout", "eval", "data", "rest")


def seed_for(seed: int, step: int, purpose: Purpose, rank: int = 0) -> int:
    """A seed in [0, 2**63) that is independent for every (seed, step, purpose, rank)."""
    sequence = np.random.SeedSequence([seed, step, _PURPOSES.index(purpose), rank])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def request_seeds(seed: int, count: int) -> list[int]:
    """Seeds in [0, 2**63) of `count` requests drawn apart, so that no request depends on which others it runs with."""
    return (np.random.SeedSequence(seed).generate_state(count, np.uint64) >> np.uint64(1)).tolist()
