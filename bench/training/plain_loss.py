"""The same loss by plain PyTorch instead of `upge`: all logits of the model at once, in float32."""

from __future__ import annotations

import torch
from upge import PolicyLossOutput

from hpt.method.micro_batches import MicroBatch
from hpt.method.rows import Signal
from hpt.model.policy import Policy


class PlainLoss:
    """`Policy.loss` for runs with one update per step, without KL penalty, `loss.tis` and off-policy rows.

    In such runs every ratio is 1, so a token's loss is -w (A log pi + entropy_coef H).
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, batch: MicroBatch) -> PolicyLossOutput:
        policy = self.policy
        logits = policy.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        temperatures = torch.where(batch.objective_index == Signal.RL, policy.temperature, 1.0)
        every = torch.log_softmax(logits.flatten(0, 1)[batch.positions].float() / temperatures[:, None], dim=-1)
        logprobs = every.gather(-1, batch.targets[:, None]).squeeze(-1)
        with torch.set_grad_enabled(policy.entropy_coef != 0):
            entropy = -(every.exp() * every).sum(-1)
        token_loss = -batch.weights * (batch.advantages * logprobs + policy.entropy_coef * entropy)
        return PolicyLossOutput(
            loss=token_loss.sum(),
            token_loss=token_loss.detach(),
            logprobs=logprobs.detach(),
            entropy=entropy.detach(),
            ratio=torch.ones_like(logprobs),
            coefficient=-batch.weights * batch.advantages,
            stable=torch.ones_like(logprobs, dtype=torch.bool),
            evaluated=torch.ones_like(logprobs, dtype=torch.bool),
            top1=logprobs.detach() == every.detach().amax(-1),
        )
