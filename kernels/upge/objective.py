"""Objectives, stated as the four parts of the Unified Policy Gradient Estimator (UPGE, arXiv 2509.04419).

    grad = 1_stable * (1 / pi_ref) * A_hat * grad pi_theta

Notation: l = log pi_theta of the token, r = pi_theta / pi_ref, A its advantage, w its weight, and sg() stops gradients.
The named choices of the four parts (PPO, GRPO, SFT, ...) are in `presets.py`.
"""

from __future__ import annotations

import itertools
import math
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

ReferencePolicy = Literal["policy", "rollout", "sequence", "one"]
AdvantageEstimate = Literal["given", "one"]
Likelihood = Literal["log", "ratio"]


class TokenLoss(NamedTuple):
    """What a user-defined objective may return in place of the loss alone, each (n,).

    loss: before the weight. ratio and stable: what the call reports as `ratio` and `stable`; None: 1 and True.
    """

    loss: Tensor
    ratio: Tensor | None = None
    stable: Tensor | None = None


LossFunction = Callable[[Tensor, Any], Tensor | TokenLoss]


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

    def __post_init__(self) -> None:
        check_number("Clip low", self.low, "between 0 and 1", lambda x: 0 <= x <= 1)
        check_number("Clip high", self.high, "at least 0", lambda x: x >= 0)
        if self.dual is not None:
            check_number("Clip dual", self.dual, "greater than 1 or None", lambda x: x > 1)


@dataclass(frozen=True)
class WeightClip:
    """CISPO's weight clip (arXiv 2506.13585, Eq. 4-5): r is clipped and detached; every token keeps a gradient.

    r is clipped at 1 + high, or at `max_ratio` where that is given (then `high` is not read), and from below at 1 - low
    where `low` is given. With `drop`, r is not clipped. Instead a token loses its gradient where A > 0 and r is above
    the upper bound, or A < 0 and r is below the lower one.
    """

    high: float = 0.2
    drop: bool = False
    low: float | None = None
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.drop, bool):
            raise TypeError(f"WeightClip drop: must be True or False; got {self.drop!r}")
        check_number("WeightClip high", self.high, "at least 0", lambda x: x >= 0)
        if self.low is not None:
            check_number("WeightClip low", self.low, "between 0 and 1 or None", lambda x: 0 <= x <= 1)
        if self.max_ratio is not None:
            check_number("WeightClip max_ratio", self.max_ratio, "positive or None", lambda x: x > 0)
        if self.lower > self.upper:
            raise ValueError(
                f"WeightClip max_ratio: must be at least the lower bound 1 - low = {self.lower}; got {self.max_ratio}"
            )

    @property
    def upper(self) -> float:
        """The largest r that is left as it is."""
        return 1 + self.high if self.max_ratio is None else self.max_ratio

    @property
    def lower(self) -> float:
        """The smallest r that is left as it is."""
        return 0.0 if self.low is None else 1 - self.low


@dataclass(frozen=True)
class Shaping:
    """LUFFY's policy shaping (arXiv 2504.14945): r becomes r / (r + gamma).

    Its slope, gamma / (r + gamma)^2, favours unlikely tokens.
    """

    gamma: float

    def __post_init__(self) -> None:
        check_number("Shaping gamma", self.gamma, "positive and finite", lambda x: 0 < x < math.inf)


@dataclass(frozen=True)
class SoftGate:
    """SAPO's soft gate (arXiv 2511.20347): r becomes (4 / tau) sigmoid(tau (r - 1)).

    Its slope is 1 at r = 1 and falls on both sides. tau is tau_positive where A > 0, and tau_negative elsewhere.
    """

    tau_positive: float
    tau_negative: float

    def __post_init__(self) -> None:
        for name in ("tau_positive", "tau_negative"):
            check_number(f"SoftGate {name}", getattr(self, name), "positive and finite", lambda x: 0 < x < math.inf)


StabilizationMask = Unmasked | Clip | WeightClip | Shaping | SoftGate

BUILD_OUTSIDE = (
    "build upge.Objective(...) outside the function that torch.compile(fullgraph=True) traces, and pass it in; "
    "presets such as upge.PPO() may be called inside"
)

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
    likelihood:  how grad pi_theta enters. "ratio": through r, so the loss is -gain A, with gain the masked r. "log":
                 through l, with the coefficient detached: -sg(c) A l, where c = r d gain / d r (the clipped r itself
                 for WeightClip). g is the same for both, -w c A, but for sequences: their ratio couples tokens, so
                 under "ratio" each token's g is the mean over the sequence, and under "log" each keeps its own.
    name:        what error messages call it.

    Not every combination has a meaning. A mask acts on r, which is constant under the reference "policy" and a
    probability under "one": with the former only Unmasked goes, with the latter also Shaping. WeightClip detaches r, so
    it needs the likelihood "log".

    Raises TypeError or ValueError, naming the part, what it got and what is allowed.
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
        if torch.compiler.is_dynamo_compiling():
            raise RuntimeError(BUILD_OUTSIDE)
        self._check()
        object.__setattr__(self, "key", next(_keys))
        _objectives[self.key] = self

    def _check(self) -> None:
        if not isinstance(self.mask, StabilizationMask):
            raise TypeError(
                "mask: must be one of upge.Unmasked(), Clip(...), WeightClip(...), Shaping(...), SoftGate(...); "
                f"got {self.mask!r}"
            )
        _check_choice("reference", self.reference, ReferencePolicy)
        _check_choice("advantage", self.advantage, AdvantageEstimate)
        _check_choice("likelihood", self.likelihood, Likelihood)
        if self.function is not None and not callable(self.function):
            raise TypeError(_function_message(self.function))
        if not isinstance(self.name, str):
            raise TypeError(f"name: must be a string; got {self.name!r}")
        if not isinstance(self.per_token, bool):
            raise TypeError(f"per_token: must be True or False; got {self.per_token!r}")
        parts = (self.mask, self.reference, self.advantage, self.likelihood)
        if self.function is not None and parts != (Unmasked(), "policy", "given", "log"):
            raise ValueError(
                "function: takes the place of mask, reference, advantage and likelihood; give one or the other"
            )
        mask = type(self.mask).__name__
        if self.reference == "policy" and not isinstance(self.mask, Unmasked):
            raise ValueError(
                f"reference: the mask {mask} acts on r = pi / pi_ref, which is always 1 for 'policy'; "
                "use 'rollout' or 'sequence'"
            )
        if self.reference == "one" and not isinstance(self.mask, Unmasked | Shaping):
            raise ValueError(
                f"reference: the mask {mask} compares r with 1, but for 'one' r is a probability; "
                "use 'rollout' or 'sequence'"
            )
        if isinstance(self.mask, WeightClip) and self.likelihood == "ratio":
            raise ValueError("likelihood: WeightClip detaches r, so the gradient must enter through 'log'; got 'ratio'")

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
    def reads_old_logprobs(self) -> bool:
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
        batch has those tokens' `entropy` (differentiable), every per-token argument of the call (`advantages`,
        `old_logprobs`, `ref_logprobs`, `rollout_logprobs`, `sequence_ids`, `weights`, `mask`, ...) and the call's extra
        `columns` under their names, each (n,); reading one that the call was not given raises ValueError. The result
        must be (n,) and depend on logprobs, or be a `TokenLoss` that also reports `ratio` and `stable`. The loss is
        multiplied by `weights` and by the truncated importance ratio, and summed. Autograd on (n,) vectors gives each
        token's coefficient. Gradients reach logprobs and entropy alone: parameters and columns that the function reads
        are constants.

        By default the function sees all its tokens at once, so it may couple them (sequence-level ratios, batch
        statistics). That takes a second pass over the logits. With `per_token=True` you promise that a token's loss
        depends on that token only: the function is then called once per chunk of tokens, and one pass is enough.

        Raises TypeError where `function` is not callable.
        """
        if not callable(function):
            raise TypeError(_function_message(function))
        return cls(name=name, function=function, per_token=per_token)


def check_number(name: str, value: object, allowed: str, test: Callable[[float], bool]) -> None:
    """ValueError, calling the number `name`, where it is none or fails the test."""
    is_float = isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)
    if isinstance(value, bool) or not (is_float and test(value)):  # type: ignore[arg-type]
        raise ValueError(f"{name}: must be a number, {allowed}; got {value!r}")


def _check_choice(name: str, value: object, choices: Any) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name}: must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def _function_message(got: object) -> str:
    return f"function: must be callable as (logprobs, batch) -> loss per token; got {type(got).__name__}"
