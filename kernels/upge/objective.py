"""Objectives, stated as the four parts of the Unified Policy Gradient Estimator (UPGE, arXiv 2509.04419).

    grad = 1_stable * (1 / pi_ref) * A_hat * grad pi_theta

Notation: l = log pi_theta of the token, r = pi_theta / pi_ref, A its advantage, w its weight, and sg() stops gradients.
The named choices of the four parts (PPO, GRPO, SFT, ...) are in `presets.py`.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from torch import Tensor

ReferencePolicy = Literal["policy", "rollout", "sequence", "one"]
AdvantageEstimate = Literal["given", "one"]
Likelihood = Literal["log", "ratio"]
LossFunction = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Unmasked:
    """1_stable = 1: every token keeps its gradient."""


@dataclass(frozen=True)
class Clip:
    """PPO's trust region (arXiv 1707.06347, Eq. 7): clips r to [1 - low, 1 + high].

    A token has no gradient where (A > 0 and r > 1 + high) or (A < 0 and r < 1 - low). `dual` (> 1) also bounds the loss
    of tokens with A < 0, which have no gradient where r > dual (arXiv 1912.09729, Eq. 4).
    """

    low: float
    high: float
    dual: float | None = None


@dataclass(frozen=True)
class WeightClip:
    """CISPO's weight clip (arXiv 2506.13585, Eq. 4-5): r is clipped at 1 + high and detached; the gradient remains.

    With `drop`, r is not clipped. Instead a token with A > 0 and r > 1 + high loses its gradient.
    """

    high: float
    drop: bool = False


@dataclass(frozen=True)
class Shaping:
    """LUFFY's policy shaping (arXiv 2504.14945): r becomes r / (r + gamma).

    Its slope, gamma / (r + gamma)^2, favours unlikely tokens.
    """

    gamma: float


@dataclass(frozen=True)
class SoftGate:
    """SAPO's soft gate (arXiv 2511.20347): r becomes (4 / tau) sigmoid(tau (r - 1)).

    Its slope is 1 at r = 1 and falls on both sides. tau is tau_positive where A > 0, and tau_negative elsewhere.
    """

    tau_positive: float
    tau_negative: float


StabilizationMask = Unmasked | Clip | WeightClip | Shaping | SoftGate

_keys = itertools.count()
_objectives: weakref.WeakValueDictionary[int, Objective] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Objective:
    """A policy-gradient objective: the four parts of UPGE, or a user-defined function (`from_function`).

    mask:        the stabilization mask 1_stable, or a smooth relative of it, as a function of r and A.
    reference:   the reference policy pi_ref.
                 "policy":   pi_theta itself, detached, so r = 1.
                 "rollout":  the policy that sampled the token (`old_logprobs`).
                 "sequence": pi (pi_old / pi)^(1/len), so r is the geometric mean of pi / pi_old over the sequence
                             (`sequence_ids`).
                 "one":      1, so r = pi.
    advantage:   A_hat. "given": the call's `advantages`. "one": 1 for every token, as for demonstrations.
    likelihood:  how grad pi_theta enters. "ratio": through r. "log": through l, with r as a detached factor. Where
                 nothing is masked both give the same gradient, but not the same loss value.
    name:        what error messages call it.
    """

    mask: StabilizationMask = Unmasked()
    reference: ReferencePolicy = "policy"
    advantage: AdvantageEstimate = "given"
    likelihood: Likelihood = "log"
    name: str = "objective"
    function: LossFunction | None = None
    per_token: bool = True
    key: ClassVar[int]  # unique to each object; not a field, so that a copy gets its own key

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", next(_keys))
        _objectives[self.key] = self

    def __reduce__(self) -> tuple[Any, ...]:
        return Objective, tuple(getattr(self, field.name) for field in fields(self))

    @staticmethod
    def by_key(key: int) -> Objective:
        """The objective with this `key`. A compiled graph holds only numbers, so it stores keys."""
        return _objectives[key]

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
        if self.function is not None:
            return not self.per_token
        return self.reference == "sequence"

    @classmethod
    def from_function(cls, function: LossFunction, *, name: str = "function", per_token: bool = False) -> Objective:
        """An objective defined by `function(logprobs, batch)`, which returns the loss of each token before its weight.

        logprobs is (n,) float32: log pi_theta of the n counted tokens that follow this objective, in the call's order.
        batch has those tokens' `advantages`, `old_logprobs`, `ref_logprobs`, `rollout_logprobs`, `sequence_ids`,
        `weights` and `mask`, each (n,); reading one that the call was not given raises ValueError. The result must be
        (n,) and depend on logprobs. It is multiplied by `weights` and summed. Autograd on (n,) vectors gives each
        token's coefficient.

        By default the function sees all its tokens at once, so it may couple them (sequence-level ratios, batch
        statistics). That takes a second pass over the logits. With `per_token=True` you promise that a token's loss
        depends on that token only: the function is then called once per chunk of tokens, and one pass is enough.

        Raises TypeError where `function` is not callable.
        """
        if not callable(function):
            raise TypeError(
                f"function: must be callable as (logprobs, batch) -> loss per token; got {type(function).__name__}"
            )
        return cls(name=name, function=function, per_token=per_token)
