"""Rollouts: responses sampled from the policy, with the log-probabilities they were sampled at."""

from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.engines import check_rollout_engine, make_rollout_engine
from hpt.rollout.rollout import Advantage, CriticValues, Rollout
from hpt.rollout.transformers import TransformersEngine

__all__ = [
    "Advantage",
    "CriticValues",
    "OnRollout",
    "Rollout",
    "RolloutEngine",
    "Sampling",
    "TransformersEngine",
    "check_rollout_engine",
    "make_rollout_engine",
]
