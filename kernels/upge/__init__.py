"""upge: the fused policy loss of the Unified Policy Gradient Estimator (arXiv 2509.04419).

out = upge.fused_policy_loss(hidden, lm_head.weight, targets, upge.GRPO(), advantages=A, old_logprobs=old)
out.loss.backward()
"""

from .api import LogprobsOutput, PolicyLossOutput, fused_policy_loss, linear_logprobs
from .checks import debug
from .head import FusedLMHead
from .objective import (
    CISPO,
    DAPO,
    DFT,
    GRPO,
    GSPO,
    LUFFY,
    PPO,
    PRESETS,
    REINFORCE,
    SAPO,
    SFT,
    SRFT,
    DrGRPO,
    Objective,
)

__all__ = [
    "CISPO",
    "DAPO",
    "DFT",
    "GRPO",
    "GSPO",
    "LUFFY",
    "PPO",
    "PRESETS",
    "REINFORCE",
    "SAPO",
    "SFT",
    "SRFT",
    "DrGRPO",
    "FusedLMHead",
    "LogprobsOutput",
    "Objective",
    "PolicyLossOutput",
    "debug",
    "fused_policy_loss",
    "linear_logprobs",
]
