"""Advantage estimates from rewards: A_hat in the unified estimator (arXiv 2509.04419, table 1).

To add an estimator, write a function here and name it in `ESTIMATORS`; a recipe then asks for it by `rl.advantage`. One
that compares the rollouts of a question also belongs in `GROUP_ADVANTAGES` (`hpt.config.rules`). A recipe may also name
a function elsewhere, as module:function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hpt.config.schema import Config
from hpt.method.experience import Experience
from hpt.method.probe import size_factor
from hpt.rollout import Rollout
from hpt.support.errors import ConfigError, HptError
from hpt.support.named_functions import user_function

Groups = list[np.ndarray]
"""One float64 array per question: a number for each member of its group."""

Estimator = Callable[[Groups], Groups]
"""Rewards -> advantages, of the same shapes."""

EstimateAdvantages = Callable[[Sequence[Experience]], None]
"""Sets the advantage of every rollout and of demonstrations that are trained by off-policy RL."""

LARGEST = 3e38
"""The largest advantage in size: it must be finite in float32, the dtype of the loss."""

STD_FLOOR = 1e-6
"""Added to a group's standard deviation."""


def mean(rewards: Groups) -> Groups:
    """R - mean of the group (Dr. GRPO, arXiv 2503.20783; HPT)."""
    return [_centred(group) for group in rewards]


def mean_std(rewards: Groups) -> Groups:
    """(R - mean) / (std + 1e-6), with the unbiased std of the group (GRPO, arXiv 2402.03300)."""
    return [_standardised(group) for group in rewards]


def leave_one_out(rewards: Groups) -> Groups:
    """R - mean of the others in the group (RLOO, arXiv 2402.14740)."""
    return [_centred(group) * (group.size / max(1, group.size - 1)) for group in rewards]


def batch(rewards: Groups) -> Groups:
    """(R - mean) / (std + 1e-6) over all rollouts of the batch of questions (REINFORCE++, arXiv 2501.03262)."""
    if not rewards:
        return []
    sizes = [group.size for group in rewards]
    return np.split(_standardised(np.concatenate(rewards)), np.cumsum(sizes)[:-1])


def none(rewards: Groups) -> Groups:
    """R itself."""
    return rewards


def sign(rewards: Groups) -> Groups:
    """1 where R = 1, else -1 (the on-policy row of SRFT, arXiv 2506.19767)."""
    return [np.where(group == 1, 1.0, -1.0) for group in rewards]


ESTIMATORS: dict[str, Estimator] = {
    "mean": mean,
    "mean_std": mean_std,
    "leave_one_out": leave_one_out,
    "batch": batch,
    "none": none,
    "sign": sign,
}


def advantages(rewards: Sequence[Sequence[float]], estimator: str) -> list[list[float]]:
    """One advantage per reward, of ragged [questions][rollouts] rewards. A question may have none."""
    if not all(rewards):
        estimated = iter(advantages([group for group in rewards if group], estimator))
        return [next(estimated) if group else [] for group in rewards]
    groups = [np.asarray(group, dtype=np.float64) for group in rewards]
    result = find_estimator(estimator)(groups)
    try:
        estimates = [[float(value) for value in group] for group in result]
    except (TypeError, ValueError, OverflowError) as error:
        raise HptError(f"rl.advantage {estimator} must return one list of numbers per question: {error}") from None
    if not all(abs(value) <= LARGEST for group in estimates for value in group):  # NaN, too
        raise HptError(f"rl.advantage {estimator} returned advantages that are not finite in float32: {estimates}")
    given, returned = [len(group) for group in rewards], [len(group) for group in estimates]
    if given != returned:
        raise HptError(f"rl.advantage {estimator} returned {returned} advantages per question for {given} rewards")
    return estimates


def advantages_with_demonstrations(
    rewards: Sequence[Sequence[float]],
    demonstrations: Sequence[float | None],
    estimator: str,
    off_policy_estimator: str,
) -> tuple[list[list[float]], list[float]]:
    """As `advantages`, with each question's demonstration in its group (LUFFY, arXiv 2504.14945).

    demonstrations: their rewards. One without a reward is in no group and has advantage 0.
    Returns the advantages of the rollouts by `estimator` and those of the demonstrations by `off_policy_estimator`.
    """
    pairs = list(zip(rewards, demonstrations, strict=True))
    groups = [[*group] if reward is None else [*group, reward] for group, reward in pairs]
    policy, off_policy = advantages(groups, estimator), advantages(groups, off_policy_estimator)
    of_rollouts, of_demonstrations = [], []
    for (group, reward), own, others in zip(pairs, policy, off_policy, strict=True):
        of_rollouts.append(own[: len(group)])
        of_demonstrations.append(0.0 if reward is None else others[-1])
    return of_rollouts, of_demonstrations


def find_estimator(name: str) -> Estimator:
    """The estimator that `rl.advantage` names; ConfigError where there is none."""
    if ":" in name:
        return user_function(name, field="rl.advantage", arguments=["rewards"])
    if name not in ESTIMATORS:
        raise ConfigError(f"rl.advantage = {name!r}: allowed are {', '.join(ESTIMATORS)}, gae, or module:function")
    return ESTIMATORS[name]


def group_advantages(config: Config) -> EstimateAdvantages:
    """Advantages from the rewards of a step, with the estimators of `rl` and, for demonstrations, `off_policy`."""
    estimator, off_policy_estimator = config.rl.advantage, config.off_policy.advantage
    find_estimator(estimator)  # an unknown one is an error now, not in the first step

    def estimate(experiences: Sequence[Experience]) -> None:
        rewards = [[reward for _, reward in _rewarded(experience)] for experience in experiences]
        if config.demonstration_in_group:
            demonstrations = [
                experience.demonstration_reward if experience.demonstration_in_group(config) else None
                for experience in experiences
            ]
            estimates, others = advantages_with_demonstrations(rewards, demonstrations, estimator, off_policy_estimator)
        else:
            estimates, others = advantages(rewards, estimator), [1.0] * len(experiences)  # off_policy.advantage "one"
        for experience, group, demonstration_advantage in zip(experiences, estimates, others, strict=True):
            experience.demonstration_advantage = demonstration_advantage
            factor = size_factor(estimator, experience.probe, config.sampled) if experience.probe else 1.0
            for (rollout, _), advantage in zip(_rewarded(experience), group, strict=True):
                rollout.advantage = factor * advantage

    return estimate


def _rewarded(experience: Experience) -> list[tuple[Rollout, float]]:
    """RL's rollouts with their rewards. One to which no reward applies keeps advantage 0, and is in no baseline."""
    return [(rollout, rollout.reward) for rollout in experience.rl_rollouts if rollout.reward is not None]


def after_overlong_penalty(config: Config, estimate: EstimateAdvantages) -> EstimateAdvantages:
    """`estimate` with `rl.overlong`: long rollouts have a penalty in their reward."""
    assert config.rl.overlong is not None
    penalty, limits = config.rl.overlong.penalty, config.overlong_limits

    def penalised(experiences: Sequence[Experience]) -> None:
        for experience in experiences:
            for rollout in experience.rollouts:
                rollout.overlong_penalty = penalty * overlong_penalty(len(rollout.tokens), *limits)
        estimate(experiences)

    return penalised


def overlong_penalty(length: int, max_tokens: int, cache: int) -> float:
    """Soft overlong punishment of a response of `length` tokens (DAPO, arXiv 2503.14476, eq. 13), from -1 to 0.

    0 up to max_tokens - cache, -1 from max_tokens on, linear in between.
    """
    return max(-1.0, min(0.0, (max_tokens - cache - length) / cache))


def gae(reward: float, values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Generalised advantage estimates of a response's tokens (arXiv 1506.02438, eq. 16).

    values: V of the state before each token. The last token has the reward, all others 0, and the episode ends there:
    A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t.
    """
    backwards: list[float] = []
    next_estimate, next_value, reward_here = 0.0, 0.0, reward
    for value in reversed(values):
        next_estimate = reward_here + gamma * next_value - value + gamma * lam * next_estimate
        next_value, reward_here = value, 0.0
        backwards.append(next_estimate)
    return backwards[::-1]


def _centred(rewards: np.ndarray) -> np.ndarray:
    # Equal rewards must give exactly 0, which a rounded mean need not: rows with A = 0 never reach the model.
    if np.all(rewards == rewards[0]):
        return np.zeros_like(rewards)
    return rewards - rewards.mean()


def _standardised(rewards: np.ndarray) -> np.ndarray:
    std = float(rewards.std(ddof=1)) if rewards.size > 1 else 0.0
    return _centred(rewards) / (std + STD_FLOOR)
