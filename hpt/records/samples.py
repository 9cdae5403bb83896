"""A few rollouts of a step, as rows of a table for trackers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from hpt.method.experience import Experience
from hpt.method.gate import Decision
from hpt.rollout import Rollout

QUESTIONS_OF_A_KIND = 2
PROMPT_CHARACTERS, RESPONSE_CHARACTERS = 300, 1200


@dataclass(frozen=True)
class Sample:
    """One rollout. Its fields are the columns of the table; long texts are shortened."""

    step: int
    question: str  # id
    prompt: str
    response: str
    reward: float | None  # None where no reward applies
    score: float | None  # as the status None where nothing asks for a verdict
    status: str | None
    advantage: float  # with a critic, the mean over its tokens
    gate: str


def sample_rollouts(step: int, experiences: Sequence[Experience]) -> list[Sample]:
    """Of the first few questions that none, some and all rollouts solve, the rollouts of highest and lowest reward."""
    found: dict[str, list[Experience]] = {"none": [], "some": [], "all": []}
    for experience in experiences:
        if experience.rollouts:
            found[_outcome(experience)].append(experience)
    return [
        _sample(step, experience, rollout)
        for kind in found.values()
        for experience in kind[:QUESTIONS_OF_A_KIND]
        for rollout in _best_and_worst(experience.rollouts)
    ]


def _outcome(experience: Experience) -> str:
    right = [rollout.verdict is not None and rollout.status == "correct" for rollout in experience.rollouts]
    return "all" if all(right) else "some" if any(right) else "none"


def _best_and_worst(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """One where all rewards are equal."""
    rewarded = sorted(rollouts, key=lambda rollout: -math.inf if rollout.reward is None else rollout.reward)
    worst, best = rewarded[0], rewarded[-1]
    return [best] if best.reward == worst.reward else [best, worst]


def _sample(step: int, experience: Experience, rollout: Rollout) -> Sample:
    prompt, advantage = experience.question.prompt, rollout.advantage
    return Sample(
        step=step,
        question=experience.question.id,
        prompt=shortened(prompt if isinstance(prompt, str) else str(prompt[-1]["content"]), PROMPT_CHARACTERS),
        response=shortened(rollout.text, RESPONSE_CHARACTERS),
        reward=rollout.reward,
        score=rollout.verdict.score if rollout.verdict else None,
        status=rollout.verdict.status if rollout.verdict else None,
        advantage=statistics.fmean(advantage) if isinstance(advantage, list) else advantage,
        gate=_described(experience.decision),
    )


def _described(decision: Decision) -> str:
    off = f", off {decision.off:g}" if decision.off != decision.beta else ""
    return f"alpha {decision.alpha:g}, beta {decision.beta:g}{off}"


def shortened(text: str, characters: int) -> str:
    """`text`, or its two ends: what is asked or answered is often at the end."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} … {text[-half:]}"
