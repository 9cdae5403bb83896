"""Advantage estimates of rollouts from their scores: A_hat in the unified estimator (arXiv 2509.04419, table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Estimator = Literal["mean", "mean_std", "leave_one_out", "batch", "none", "sign"]

STD_FLOOR = 1e-6
"""Added to a group's standard deviation, so that a group of equal scores has advantage 0."""


def advantages(scores: Sequence[Sequence[float]], estimator: Estimator) -> list[list[float]]:
    """One advantage a rollout, from the scores of each question's rollouts (ragged: [questions][rollouts]).

    mean           R - mean of the group (Dr. GRPO, arXiv 2503.20783; HPT)
    mean_std       (R - mean) / (std + 1e-6), the unbiased std of the group (GRPO, arXiv 2402.03300)
    leave_one_out  R - mean of the group's others (RLOO, arXiv 2402.14740)
    batch          (R - mean) / (std + 1e-6) over all rollouts of the step (REINFORCE++, arXiv 2501.03262)
    none           R
    sign           1 where R = 1, else -1 (the on-policy row of SRFT, arXiv 2506.19767)
    """
    groups = [np.asarray(group, dtype=np.float64) for group in scores]
    if estimator == "none" or not groups:
        return [group.tolist() for group in groups]
    if estimator == "sign":
        return [np.where(group == 1, 1.0, -1.0).tolist() for group in groups]
    if estimator == "batch":
        everything = _centre(np.concatenate(groups), "mean_std")
        return [part.tolist() for part in np.split(everything, np.cumsum([group.size for group in groups])[:-1])]
    return [_centre(group, estimator).tolist() for group in groups]


def advantages_with_demonstrations(
    scores: Sequence[Sequence[float]], estimator: Estimator, off_estimator: Estimator
) -> tuple[list[list[float]], list[float]]:
    """The same where each question's demonstration, with score 1, is one of its group (LUFFY, arXiv 2504.14945).

    Returns the advantages of the rollouts by `estimator` and those of the demonstrations by `off_estimator`.
    """
    groups = [[*group, 1.0] for group in scores]
    rollouts = [estimates[:-1] for estimates in advantages(groups, estimator)]
    return rollouts, [estimates[-1] for estimates in advantages(groups, off_estimator)]


def overlong_penalty(length: int, max_tokens: int, cache: int) -> float:
    """Soft overlong punishment of a response of `length` tokens (DAPO, arXiv 2503.14476, eq. 13), from -1 to 0.

    0 up to max_tokens - cache, -1 from max_tokens on, linear between.
    """
    return max(-1.0, min(0.0, (max_tokens - cache - length) / cache))


def gae(score: float, values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Generalised advantage estimates of a response's tokens (arXiv 1506.02438, eq. 16).

    values: V of the state before each token. The score is the reward of the last token, the others' is 0, and the
    response ends there: A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t.
    """
    estimates = [0.0] * len(values)
    following, value_after, reward = 0.0, 0.0, score
    for place in reversed(range(len(values))):
        following = reward + gamma * value_after - values[place] + gamma * lam * following
        estimates[place], value_after, reward = following, values[place], 0.0
    return estimates


def _centre(scores: np.ndarray, estimator: Estimator) -> np.ndarray:
    # Equal scores must give exactly 0, which a rounded mean would not: rows with A = 0 never reach the model.
    if scores.size == 0 or np.all(scores == scores[0]):
        return np.zeros_like(scores)
    centred = scores - scores.mean()
    if estimator == "mean_std":
        return centred / (_std(scores) + STD_FLOOR)
    if estimator == "leave_one_out":
        return centred * (scores.size / (scores.size - 1))
    return centred


def _std(scores: np.ndarray) -> float:
    return float(scores.std(ddof=1)) if scores.size > 1 else 0.0
