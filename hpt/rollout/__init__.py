"""Rollouts: responses sampled from the policy, with the log-probability of each sampled token."""

from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.engines import EngineInputs, check_rollout_engine, make_rollout_engine, require_rollout_packages
from hpt.rollout.rollout import Advantage, CriticValues, Rollout
from hpt.rollout.transformers import TransformersEngine

__all__ = [
    "Advantage",
    "CriticValues",
    "EngineInputs",
    "OnRollout",
    "Rollout",
    "RolloutEngine",
    "Sampling",
    "TransformersEngine",
    "check_rollout_engine",
    "make_rollout_engine",
    "require_rollout_packages",
]
