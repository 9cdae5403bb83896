"""What rollouts/step-*.jsonl says about a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpt.method.experience import Experience
from hpt.rollout import Rollout
from hpt.training.metrics import overlong_penalties


def rollout_records(step: int, experiences: Sequence[Experience]) -> list[dict[str, Any]]:
    """One object per question for rollouts/step-*.jsonl, with the gate's decision.

    `total_rewards` are what RL is given; `demonstration` is there where the gate trains on it, and `probe` where RL
    trains on the first so many rollouts only.
    """
    return [_rollout_record(step, experience) for experience in experiences]


def _rollout_record(step: int, experience: Experience) -> dict[str, Any]:
    question, rollouts = experience.question, experience.rollouts
    penalties = overlong_penalties(rollouts)
    return {
        "step": step,
        "id": question.id,
        "grade": question.grade,
        "prompt": question.prompt,
        "answer": question.answer,
        "responses": [rollout.text for rollout in rollouts],
        "scores": [rollout.verdict.score if rollout.verdict else None for rollout in rollouts],
        **({"overlong": penalties} if penalties else {}),
        "total_rewards": [rollout.reward for rollout in rollouts],
        "advantages": [_mean_advantage(rollout) for rollout in rollouts],
        "statuses": [rollout.verdict.status if rollout.verdict else None for rollout in rollouts],
        **_reward_record(experience),
        "finish_reasons": [rollout.finish_reason for rollout in rollouts],
        "lengths": [len(rollout.tokens) for rollout in rollouts],
        "P": experience.score if experience.judged else None,
        "alpha": experience.decision.alpha,
        "beta": experience.decision.beta,
        "off": experience.decision.off,
        "trained": experience.trained,
        **({"probe": experience.probe} if experience.probe else {}),
        **({"demonstration": question.demonstration} if experience.decision.uses_demonstration else {}),
    }


def _reward_record(experience: Experience) -> dict[str, Any]:
    """Of each function its rewards, what it logged by log_extra, and what it did wrong."""
    rewards, count = experience.rewards, len(experience.rollouts)
    record: dict[str, Any] = {}
    if rewards.values:
        record["rewards"] = {name: values[:count] for name, values in rewards.values.items()}
    if rewards.extra:
        record["extra"] = rewards.extra
    if rewards.faults:
        record["reward_faults"] = rewards.faults
    return record


def _mean_advantage(rollout: Rollout) -> float:
    """Its advantage; the mean over its tokens where each has its own."""
    if isinstance(rollout.advantage, list):
        return sum(rollout.advantage) / len(rollout.advantage)
    return rollout.advantage
