"""Dynamic sampling (DAPO, arXiv 2503.14476): only questions whose rollouts differ in score are trained on."""

from __future__ import annotations

from collections.abc import Sequence

from hpt.method.experience import Experience


def choose_mixed(experiences: Sequence[Experience], wanted: int) -> bool:
    """Marks the first `wanted` questions with a mixed outcome as trained; returns whether that many were found."""
    chosen = 0
    for experience in experiences:
        experience.trained = experience.mixed and chosen < wanted
        chosen += experience.trained
    return chosen >= wanted
