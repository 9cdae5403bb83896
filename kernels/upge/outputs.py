"""What the two public functions return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LogprobsOutput(NamedTuple):
    """What `linear_logprobs` returns.

    logprobs: (N,) float32, log pi(y), differentiable.
    entropy:  (N,) float32 in nats, differentiable; None unless it was asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None


class PolicyLossOutput(NamedTuple):
    """What `fused_policy_loss` returns.

    loss:        () float32, the sum of the tokens' weighted losses, differentiable in hidden, weight and bias.

    Per token, (N,), detached:
    logprobs:    float32, log pi(y).
    entropy:     float32, in nats.
    ratio:       float32, r = pi / pi_ref for the token's objective: 1 where pi_ref is pi itself, and at most e^80.
    coefficient: float32, g = d loss / d logprobs, the quantity that UPGE describes.
    stable:      bool, False where the objective's stabilization mask (clip or weight clip) acts on the token.
    evaluated:   bool, True where the token's logits were computed: it counts and can have a gradient.

    Masked tokens read 0 (False) in every field. Tokens that count but are known to have g = 0 are skipped: their
    advantage or weight is 0 and neither an entropy nor a KL term is used. Their logprobs, entropy and ratio are unknown
    and read NaN, their coefficient reads 0, and stable reads True. Average statistics over `evaluated` tokens only.
    """

    loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    ratio: Tensor
    coefficient: Tensor
    stable: Tensor
    evaluated: Tensor
