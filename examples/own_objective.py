"""A user-defined objective: PPO's ratio without a clip, and a quadratic penalty on log r in its place.

In a plain loop it is upge.Objective.from_function(penalised). A recipe of hpt names it, with this file's folder as the
current one:

    rl: {objective: "own_objective:penalised", options: {per_token: true}}

Run it: python examples/own_objective.py
"""

from typing import Any

import torch
import upge

PENALTY = 0.5


def penalised(logprobs: torch.Tensor, batch: Any) -> torch.Tensor:
    """-r A + PENALTY (log r)^2 / 2 of each token, with r = pi / pi_old. All are (n,)."""
    log_ratio = logprobs - batch.old_logprobs
    return -log_ratio.exp() * batch.advantages + PENALTY * log_ratio.square() / 2


def main() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the coefficients g = d loss / d log pi of autograd, and those of the formula written out."""
    torch.manual_seed(0)
    tokens, width, vocabulary = 6, 8, 20
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    advantages = torch.randn(tokens)
    old = upge.linear_logprobs(hidden, weight, targets).logprobs.detach() + 0.1 * torch.randn(tokens)

    # per_token=True promises that a token's loss depends on that token only, which saves a second pass over the logits.
    objective = upge.Objective.from_function(penalised, per_token=True)
    out = upge.fused_policy_loss(hidden, weight, targets, objective, advantages=advantages, old_logprobs=old)
    out.loss.backward()

    log_ratio = out.logprobs - old
    by_hand = (-log_ratio.exp() * advantages + PENALTY * log_ratio) / tokens  # the default weight is 1 / tokens
    print("by autograd", [round(value, 4) for value in out.coefficient.tolist()])
    print("by hand    ", [round(value, 4) for value in by_hand.tolist()])
    return out.coefficient, by_hand


if __name__ == "__main__":
    main()
