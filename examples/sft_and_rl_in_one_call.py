"""Hybrid Post-Training in a plain PyTorch loop: SFT rows and RL rows go through one call of upge.fused_policy_loss.

The task is to count up from a number. Where none of a question's rollouts is right, the question is trained on its
demonstration (SFT), else on its rollouts (REINFORCE, advantage R - mean).
Run it: python examples/sft_and_rl_in_one_call.py
"""

import torch
import upge
from tiny_model import TinyModel

NUMBERS, LENGTH, ROLLOUTS, STEPS = 16, 3, 4, 60

torch.manual_seed(0)
model = TinyModel(NUMBERS)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
prompts = torch.arange(NUMBERS)[:, None]
demonstrations = (prompts + torch.arange(LENGTH + 1)) % NUMBERS  # (questions, 1 + LENGTH)


def per_token(of_rows: torch.Tensor) -> torch.Tensor:
    """One number per row -> one per response token."""
    return of_rows.repeat_interleave(LENGTH)


sft_shares, accuracies = [], []
for step in range(STEPS):
    # Sample and verify: (questions, ROLLOUTS, 1 + LENGTH) and (questions, ROLLOUTS).
    rollouts = model.sample(prompts.repeat_interleave(ROLLOUTS, 0), LENGTH).view(NUMBERS, ROLLOUTS, -1)
    rewards = (rollouts == demonstrations[:, None]).all(-1).float()
    # The gate, and the advantages of the rollouts.
    to_sft = rewards.sum(1) == 0
    advantages = rewards - rewards.mean(1, keepdim=True)
    # Rows: a demonstration or ROLLOUTS rollouts of each question. The weights hold the normaliser: a mean over
    # questions, rollouts and tokens.
    sft_rows, rl_rows = demonstrations[to_sft], rollouts[~to_sft].flatten(0, 1)
    ids = torch.cat([sft_rows, rl_rows])
    is_rl = torch.cat([torch.zeros(len(sft_rows)), torch.ones(len(rl_rows))]).long()
    row_advantages = torch.cat([torch.zeros(len(sft_rows)), advantages[~to_sft].flatten()])
    row_weights = torch.where(is_rl == 1, 1 / (NUMBERS * ROLLOUTS * LENGTH), 1 / (NUMBERS * LENGTH))

    out = upge.fused_policy_loss(
        model.hidden(ids[:, :-1]).flatten(0, 1),  # (rows * LENGTH, D): the states that predict the response
        model.lm_head.weight,
        ids[:, 1:].flatten(),
        [upge.SFT(), upge.REINFORCE()],
        objective_index=per_token(is_rl),
        advantages=per_token(row_advantages),
        weights=per_token(row_weights),
    )
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    sft_shares.append(to_sft.float().mean().item())
    accuracies.append(rewards.mean().item())
    if step % 10 == 0 or step == STEPS - 1:
        print(f"step {step:2}  accuracy {accuracies[-1]:.2f}  questions sent to SFT {sft_shares[-1]:.2f}")
