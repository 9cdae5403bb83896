"""The fused policy loss of the Unified Policy Gradient Estimator (UPGE, arXiv 2509.04419).

    out = upge.fused_policy_loss(hidden, lm_head.weight, targets, upge.GRPO(), advantages=A, old_logprobs=old)
    out.loss.backward()

The loss is computed from the hidden states and the weight of the language model's head. The logits are never stored.
"""

from . import integrations
from .api import fused_policy_loss, linear_logprobs
from .debugging import debug
from .lm_head import FusedLMHead
from .memory import memory_bytes
from .objective import Clip, Objective, Shaping, SoftGate, TokenLoss, Unmasked, WeightClip
from .outputs import LogprobsOutput, PolicyLossOutput
from .presets import CISPO, DAPO, DFT, GRPO, GSPO, LUFFY, PPO, PRESETS, REINFORCE, SAPO, SFT, SRFT, DrGRPO

__version__ = "0.1.0"

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
    "Clip",
    "DrGRPO",
    "FusedLMHead",
    "LogprobsOutput",
    "Objective",
    "PolicyLossOutput",
    "Shaping",
    "SoftGate",
    "TokenLoss",
    "Unmasked",
    "WeightClip",
    "__version__",
    "debug",
    "fused_policy_loss",
    "integrations",
    "linear_logprobs",
    "memory_bytes",
]
