"""Rollouts where each prompt has its own number of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.rollout import Rollout


def generate_counts(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_rollout: OnRollout,
) -> list[list[Rollout]]:
    """As `engine.generate`, with `counts` rollouts of the prompts; `sampling.n` is not read.

    The engine is asked for one rollout of each of the repeated prompts, since it takes one n for all.
    """
    places = [(index, number) for index, count in enumerate(counts) for number in range(count)]
    repeated = [prompts[index] for index, _ in places]

    def hand_over(place: int, number: int, rollout: Rollout) -> None:
        on_rollout(*places[place], rollout)

    groups: list[list[Rollout]] = [[] for _ in prompts]
    sampled = engine.generate(repeated, replace(sampling, n=1), seed, hand_over)
    for (index, _), (rollout,) in zip(places, sampled, strict=True):
        groups[index].append(rollout)
    return groups
