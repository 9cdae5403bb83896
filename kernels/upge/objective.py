"""Objectives as the four parts of the Unified Policy Gradient Estimator (UPGE, arXiv 2509.04419).

    grad = 1_stable * (1 / pi_ref) * A_hat * grad pi_theta

Every preset is one choice of these parts. r = pi_theta / pi_ref is the ratio that the first two share, l = log pi_theta
of the token, A its advantage, w its normalising weight, sg() stops gradients.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch

Reference = Literal["policy", "rollout", "sequence", "one"]
Advantage = Literal["given", "one"]
Likelihood = Literal["log", "ratio"]
UserFunction = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclass(frozen=True)
class Unmasked:
    """1_stable = 1: every token keeps its gradient."""


@dataclass(frozen=True)
class Clip:
    """The trust region of PPO: no gradient where (A > 0 and r > 1 + high) or (A < 0 and r < 1 - low).

    `dual` (> 1) also bounds the loss of tokens with A < 0: no gradient where r > dual.
    """

    low: float
    high: float
    dual: float | None = None


@dataclass(frozen=True)
class WeightClip:
    """r is cut at 1 + high and detached, and the token keeps a gradient.

    With `drop` r is not cut; a token with A > 0 and r > 1 + high loses its gradient.
    """

    high: float
    drop: bool = False


@dataclass(frozen=True)
class Shaping:
    """r becomes r / (r + gamma): its slope gamma / (r + gamma)^2 favours unlikely tokens."""

    gamma: float


@dataclass(frozen=True)
class SoftGate:
    """r becomes (4 / tau) sigmoid(tau (r - 1)): slope 1 at r = 1, fading on both sides; tau by the sign of A."""

    tau_positive: float
    tau_negative: float


_keys = itertools.count()
_by_key: weakref.WeakValueDictionary[int, Objective] = weakref.WeakValueDictionary()

Mask = Unmasked | Clip | WeightClip | Shaping | SoftGate


@dataclass(frozen=True)
class Objective:
    """One policy-gradient objective: the four parts of the UPGE, or a function of one's own.

    mask:        1_stable and its smooth relatives, as a function of r and A.
    reference:   pi_ref. "policy": pi_theta itself, detached (r = 1). "rollout": the policy that sampled the token
                 (`old_logprobs`). "sequence": pi (pi_old / pi)^(1/len), so that r is the geometric mean of the ratios
                 of the sequence (`sequence_ids`). "one": r = pi.
    advantage:   A_hat. "given": the call's `advantages`. "one": 1 for every token (demonstrations).
    likelihood:  how grad pi_theta enters. "ratio": through r itself; "log": through l, r being a detached factor.
                 The gradient is the same where nothing is masked, the value of the loss is not.
    """

    mask: Mask = Unmasked()
    reference: Reference = "policy"
    advantage: Advantage = "given"
    likelihood: Likelihood = "log"
    name: str = "objective"
    function: UserFunction | None = None
    per_token: bool = True
    key: ClassVar[int]  # of each object its own, and no field: copies and replacements get another

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", next(_keys))
        _by_key[self.key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return Objective, tuple(getattr(self, f.name) for f in fields(self))

    @staticmethod
    def by_key(key: int) -> Objective:
        """The living objective with this `key`: how a compiled graph, which holds numbers only, refers to it."""
        return _by_key[key]

    @property
    def needs_advantages(self) -> bool:
        return self.function is None and self.advantage == "given"

    @property
    def needs_old_logprobs(self) -> bool:
        return self.function is None and self.reference in ("rollout", "sequence")

    @property
    def needs_sequence_ids(self) -> bool:
        return self.function is None and self.reference == "sequence"

    @property
    def needs_all_tokens(self) -> bool:
        """Whether a token's coefficient depends on the log-probabilities of other tokens."""
        return self.reference == "sequence" if self.function is None else not self.per_token

    @classmethod
    def from_function(cls, function: UserFunction, *, name: str = "function", per_token: bool = False) -> Objective:
        """An objective of one's own: `function(logprobs, batch)` returns the loss of each token, before its weight.

        logprobs: (n,) float32, log pi_theta of the n counted tokens that follow this objective, in the order of the
        call's rows. `batch` carries the rows' `advantages`, `old_logprobs`, `ref_logprobs`, `rollout_logprobs`,
        `sequence_ids`, `weights` and `mask`, each (n,); reading one that the call was not given raises. The result,
        (n,), is multiplied by `weights` and summed; autograd on [n] vectors gives each token's coefficient.

        By default the function sees all its tokens at once, so it may couple them (sequence ratios, batch statistics),
        at the price of a second pass over the logits. `per_token=True` promises that each token's loss depends on that
        token alone: then it is called chunk by chunk and one pass suffices.
        """
        if not callable(function):
            raise TypeError(
                f"function: expected a callable (logprobs, batch) -> per-token loss, got {type(function).__name__}"
            )
        return cls(name=name, function=function, per_token=per_token)


# While torch.compile traces, a preset is made once and its arguments are taken as constants.
_constant = torch.compiler.assume_constant_result


@_constant
def SFT() -> Objective:
    """Supervised fine-tuning on demonstrations: -l, g = -w; ignores advantages. UPGE: pi_ref = pi_theta, A = 1."""
    return Objective(advantage="one", name="SFT")


@_constant
def REINFORCE() -> Objective:
    """On-policy REINFORCE (Williams 1992): -A l, g = -w A. The RL half of HPT: pi_ref = pi_theta, no clipping."""
    return Objective(name="REINFORCE")


@_constant
def PPO(clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None) -> Objective:
    """Clipped surrogate of PPO (Schulman et al. 2017, arXiv 1707.06347, Eq. 7): -min(r A, clip(r, 1-low, 1+high) A).

    dual_clip (> 1): for A < 0 the loss is at most -dual_clip * A (Ye et al. 2020, arXiv 1912.09729, Eq. 4).
    """
    _bounds("PPO", clip_low, clip_high)
    if dual_clip is not None:
        _require("PPO dual_clip", dual_clip, "greater than 1 or None", lambda x: x > 1)
    return Objective(Clip(clip_low, clip_high, dual_clip), "rollout", likelihood="ratio", name="PPO")


@_constant
def GRPO(clip_low: float = 0.2, clip_high: float = 0.2) -> Objective:
    """GRPO (Shao et al. 2024, arXiv 2402.03300, Eq. 3): PPO's token loss.

    The group's normalisation lives in `advantages`, its 1/(G |o_i|) in `weights`, its KL term in `kl_coef`.
    """
    _bounds("GRPO", clip_low, clip_high)
    return Objective(Clip(clip_low, clip_high), "rollout", likelihood="ratio", name="GRPO")


@_constant
def DrGRPO(clip_low: float = 0.2, clip_high: float = 0.2) -> Objective:
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): PPO's token loss; advantages without std, weights constant."""
    _bounds("DrGRPO", clip_low, clip_high)
    return Objective(Clip(clip_low, clip_high), "rollout", likelihood="ratio", name="DrGRPO")


@_constant
def DAPO(clip_low: float = 0.2, clip_high: float = 0.28) -> Objective:
    """DAPO (Yu et al. 2025, arXiv 2503.14476, Eq. 8): clip-higher, and weights 1/(tokens of the batch)."""
    _bounds("DAPO", clip_low, clip_high)
    return Objective(Clip(clip_low, clip_high), "rollout", likelihood="ratio", name="DAPO")


@_constant
def CISPO(clip_high: float = 0.2, drop: bool = False) -> Objective:
    """CISPO (MiniMax-M1 2025, arXiv 2506.13585, Eq. 4-5): -sg(min(r, 1+clip_high)) A l, g = -w A min(r, 1+clip_high).

    drop=True is the hard mask of the UPGE table instead, -sg(m r) A l, g = -w m A r with m = 0 where A > 0 and
    r > 1 + clip_high. The table's other half, A < 0 and r < 1 - clip_low, never holds: CISPO has no lower bound.
    """
    _require("CISPO clip_high", clip_high, "at least 0", lambda x: x >= 0)
    return Objective(WeightClip(clip_high, drop), "rollout", name="CISPO")


@_constant
def GSPO(clip_low: float = 3e-4, clip_high: float = 4e-4) -> Objective:
    """GSPO (Zheng et al. 2025, arXiv 2507.18071, Eq. 5-7): -min(s A, clip(s) A), s = exp(mean of log r).

    The mean runs over the counted tokens of a `sequence_ids` value that follow this objective; they may lie anywhere in
    the batch. Where w and A are constant on a sequence and w holds 1/len, this is the paper's loss, and g = -w m A s.
    """
    _bounds("GSPO", clip_low, clip_high)
    return Objective(Clip(clip_low, clip_high), "sequence", likelihood="ratio", name="GSPO")


@_constant
def SRFT() -> Objective:
    """Off-policy RL row of SRFT (Fu et al. 2025, arXiv 2506.19767), on a demonstration: -A pi, g = -w A pi."""
    return Objective(reference="one", likelihood="ratio", name="SRFT")


@_constant
def LUFFY(gamma: float = 0.1) -> Objective:
    """Off-policy row of LUFFY (Yan et al. 2025, arXiv 2504.14945): -A pi/(pi+gamma), g = -w A gamma pi/(pi+gamma)^2."""
    _require("LUFFY gamma", gamma, "positive and finite", lambda x: 0 < x < math.inf)
    return Objective(Shaping(gamma), "one", likelihood="ratio", name="LUFFY")


@_constant
def DFT() -> Objective:
    """Dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629): -sg(pi) l, g = -w pi. Ignores advantages."""
    return Objective(reference="one", advantage="one", name="DFT")


@_constant
def SAPO(tau_positive: float = 1.0, tau_negative: float = 1.05) -> Objective:
    """SAPO (arXiv 2511.20347): -(4/tau) sigmoid(tau (r-1)) A, g = -w A 4 s (1-s) r with s the sigmoid.

    tau is tau_positive where A > 0 and tau_negative elsewhere.
    """
    for name, tau in (("tau_positive", tau_positive), ("tau_negative", tau_negative)):
        _require(f"SAPO {name}", tau, "positive and finite", lambda x: 0 < x < math.inf)
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
"""Every preset by name, for those who choose one by a setting."""


def _bounds(name: str, low: float, high: float) -> None:
    _require(f"{name} clip_low", low, "between 0 and 1", lambda x: 0 <= x <= 1)
    _require(f"{name} clip_high", high, "at least 0", lambda x: x >= 0)


def _require(name: str, value: object, allowed: str, test: Callable[[float], bool]) -> None:
    if not (isinstance(value, (int, float)) and test(value)):
        raise ValueError(f"{name}: must be a number, {allowed}; got {value!r}")
