"""Rollouts: responses sampled from the policy, with the log-probabilities they were sampled at."""

from hpt.rollout.engine import Rollout, RolloutEngine, Sampling
from hpt.rollout.engines import check_rollout_engine, make_rollout_engine
from hpt.rollout.transformers import TransformersEngine

__all__ = [
    "Rollout",
    "RolloutEngine",
    "Sampling",
    "TransformersEngine",
    "check_rollout_engine",
    "make_rollout_engine",
]
