"""What the two public functions return."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LogprobsOutput(NamedTuple):
    """What `linear_logprobs` returns, each of the shape of targets. Tokens that do not count read 0 (False).

    logprobs: float32, log pi(y), differentiable.
    entropy:  float32 in nats, differentiable; None unless it was asked for.
    lse:      float32, log sum_j exp(z_j), differentiable; None unless it was asked for.
    top1:     bool, whether no other entry has a larger logit than the target; None unless it was asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    lse: Tensor | None = None
    top1: Tensor | None = None


class PolicyLossOutput(NamedTuple):
    """What `fused_policy_loss` returns.

    loss:        () float32, the sum of the tokens' weighted losses, differentiable in hidden, weight and bias.

    Per token, of the shape of targets, detached:
    token_loss:  float32, the token's share of `loss`.
    logprobs:    float32, log pi(y).
    entropy:     float32, in nats.
    ratio:       float32, r = pi / pi_ref for the token's objective: 1 where pi_ref is pi itself or the token is
                 on-policy.
    coefficient: float32, g = d loss / d logprobs, the quantity that UPGE describes.
    stable:      bool, False where the objective's stabilization mask (clip or weight clip) or `max_log_ratio` acts on
                 the token.
    evaluated:   bool, True where the token's logits were computed: it counts and can have a gradient.
    top1:        bool, whether no other entry has a larger logit than the target (token accuracy).

    Tokens that do not count read 0 (False) in every field. Tokens that count but are known to have no gradient are
    skipped: their weight is 0, or their advantage is 0 and they have no entropy, KL or z-loss term. Their logprobs,
    entropy and ratio are unknown and read NaN; their token_loss and coefficient read 0, stable True and top1 False.
    Average statistics over `evaluated` tokens only, or ask for all numbers by evaluate="all".
    """

    loss: Tensor
    token_loss: Tensor
    logprobs: Tensor
    entropy: Tensor
    ratio: Tensor
    coefficient: Tensor
    stable: Tensor
    evaluated: Tensor
    top1: Tensor
