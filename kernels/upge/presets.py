"""The published objectives by name, with their papers' defaults.

Notation as in `objective.py`: l = log pi_theta, r = pi_theta / pi_old, A the advantage, w the weight, sg() stops
gradients, g = d loss / d l. All raise ValueError, naming the argument, where a number is out of range.

Where a preset clips r to [1 - clip_low, 1 + clip_high], a bound may be None: there is none on that side. With both None
the loss is -r A, the importance-weighted policy gradient without a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ParamSpec

from .objective import Clip, Objective, Shaping, SoftGate, Unmasked, WeightClip, check_number

Arguments = ParamSpec("Arguments")


def _constant(preset: Callable[Arguments, Objective]) -> Callable[Arguments, Objective]:
    """Lets torch.compile run a preset while it traces, and take the objective as a constant.

    This is the mark of `torch.compiler.assume_constant_result`, which itself would import torch._dynamo, with Triton,
    SymPy and NumPy, whenever upge is imported.
    """
    preset._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return preset


@_constant
def SFT() -> Objective:
    """Supervised fine-tuning on demonstrations: loss -l, g = -w. Ignores advantages.

    As UPGE: pi_ref = pi_theta, A = 1.
    """
    return Objective(advantage="one", name="SFT")


@_constant
def REINFORCE() -> Objective:
    """On-policy REINFORCE (Williams 1992): loss -A l, g = -w A. The RL half of HPT.

    As UPGE: pi_ref = pi_theta, nothing is clipped.
    """
    return Objective(name="REINFORCE")


@_constant
def PPO(clip_low: float | None = 0.2, clip_high: float | None = 0.2, dual_clip: float | None = None) -> Objective:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, Eq. 7): -min(r A, clip(r, 1-low, 1+high) A).

    dual_clip (> 1): for A < 0 the loss is at most -dual_clip * A (Ye et al. 2020, arXiv 1912.09729, Eq. 4).
    """
    if dual_clip is not None:
        check_number("PPO dual_clip", dual_clip, "greater than 1 or None", lambda x: x > 1)
    return Objective(_clip("PPO", clip_low, clip_high, dual_clip), "rollout", likelihood="ratio", name="PPO")


@_constant
def GRPO(clip_low: float | None = 0.2, clip_high: float | None = 0.2) -> Objective:
    """GRPO (Shao et al. 2024, arXiv 2402.03300, Eq. 3): PPO's token loss.

    The group normalisation belongs in `advantages`, the factor 1/(G |o_i|) in `weights`, the KL term in `kl_coef`.
    """
    return Objective(_clip("GRPO", clip_low, clip_high), "rollout", likelihood="ratio", name="GRPO")


@_constant
def DrGRPO(clip_low: float | None = 0.2, clip_high: float | None = 0.2) -> Objective:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): PPO's token loss.

    Its advantages are not divided by the standard deviation, and its weights are constant.
    """
    return Objective(_clip("DrGRPO", clip_low, clip_high), "rollout", likelihood="ratio", name="DrGRPO")


@_constant
def DAPO(clip_low: float | None = 0.2, clip_high: float | None = 0.28) -> Objective:
    """DAPO (Yu et al. 2025, arXiv 2503.14476, Eq. 8): PPO's token loss with a higher upper clip.

    Its weights are 1/(tokens of the batch).
    """
    return Objective(_clip("DAPO", clip_low, clip_high), "rollout", likelihood="ratio", name="DAPO")


@_constant
def CISPO(
    clip_high: float = 0.2, drop: bool = False, *, clip_low: float | None = None, max_ratio: float | None = None
) -> Objective:
    """CISPO (MiniMax-M1 2025, arXiv 2506.13585, Eq. 4-5): -sg(min(r, 1+clip_high)) A l, g = -w A min(r, 1+clip_high).

    clip_high: the paper names no value; 0.2 is PPO's, a choice of ours. Others bound r itself, far higher: at 4 to 8,
               with little difference between them (ScaleRL, arXiv 2510.13786).
    clip_low:  also clips r from below, at 1 - clip_low. The authors leave it off.
    max_ratio: the upper bound itself, in place of 1 + clip_high (TRL's epsilon_high under loss_type="cispo").
    drop:      the hard mask of the UPGE table instead: -sg(m r) A l, g = -w m A r, with m = 0 where A > 0 and r is
               above the upper bound, or A < 0 and r is below the lower one (which is 0 without clip_low).
    """
    check_number("CISPO clip_high", clip_high, "at least 0", lambda x: x >= 0)
    return Objective(WeightClip(clip_high, drop, clip_low, max_ratio), "rollout", name="CISPO")


@_constant
def GSPO(clip_low: float | None = 3e-4, clip_high: float | None = 4e-4) -> Objective:
    """GSPO (Zheng et al. 2025, arXiv 2507.18071, Eq. 5-7): -min(s A, clip(s) A), s = exp(mean of log r).

    The mean is over the counted tokens that follow this objective and share a value of `sequence_ids`. They may lie
    anywhere in the batch. Where w and A are constant over a sequence and w includes 1/len, this is the paper's loss and
    g = -w m A s.
    """
    return Objective(_clip("GSPO", clip_low, clip_high), "sequence", likelihood="ratio", name="GSPO")


@_constant
def SRFT() -> Objective:
    """The off-policy RL term of SRFT (Fu et al. 2025, arXiv 2506.19767), on demonstrations: -A pi, g = -w A pi."""
    return Objective(reference="one", likelihood="ratio", name="SRFT")


@_constant
def LUFFY(gamma: float = 0.1) -> Objective:
    """The off-policy term of LUFFY (Yan et al. 2025, arXiv 2504.14945), on demonstrations.

    Loss -A pi/(pi+gamma), g = -w A gamma pi/(pi+gamma)^2.
    """
    check_number("LUFFY gamma", gamma, "positive and finite", lambda x: 0 < x < math.inf)
    return Objective(Shaping(gamma), "one", likelihood="ratio", name="LUFFY")


@_constant
def DFT() -> Objective:
    """Dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629): -sg(pi) l, g = -w pi. Ignores advantages."""
    return Objective(reference="one", advantage="one", name="DFT")


@_constant
def SAPO(tau_positive: float = 1.0, tau_negative: float = 1.05) -> Objective:
    """SAPO (arXiv 2511.20347): -(4/tau) sigmoid(tau (r-1)) A, g = -w A 4 s (1-s) r, where s is the sigmoid.

    tau is tau_positive where A > 0, and tau_negative elsewhere.
    """
    for name, tau in (("tau_positive", tau_positive), ("tau_negative", tau_negative)):
        check_number(f"SAPO {name}", tau, "positive and finite", lambda x: 0 < x < math.inf)
    return Objective(SoftGate(tau_positive, tau_negative), "rollout", likelihood="ratio", name="SAPO")


PRESETS: dict[str, Callable[..., Objective]] = {
    "SFT": SFT,
    "REINFORCE": REINFORCE,
    "PPO": PPO,
    "GRPO": GRPO,
    "DrGRPO": DrGRPO,
    "DAPO": DAPO,
    "CISPO": CISPO,
    "GSPO": GSPO,
    "SRFT": SRFT,
    "LUFFY": LUFFY,
    "DFT": DFT,
    "SAPO": SAPO,
}
"""Every preset by name, for settings that choose one."""


def _clip(name: str, low: float | None, high: float | None, dual: float | None = None) -> Clip | Unmasked:
    if low is not None:
        check_number(f"{name} clip_low", low, "between 0 and 1, or None", lambda x: 0 <= x <= 1)
    if high is not None:
        check_number(f"{name} clip_high", high, "at least 0, or None", lambda x: x >= 0)
    if low is high is dual is None:
        return Unmasked()
    # r is above 0, so a lower bound of 0 is none.
    return Clip(1.0 if low is None else low, math.inf if high is None else high, dual)
