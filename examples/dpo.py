"""Your own loss over upge.linear_logprobs: direct preference optimization (DPO, arXiv 2305.18290, equation 7).

linear_logprobs gives differentiable log-probabilities from hidden states and the head's weight, without logits, so any
formula over them works. Here the model is to prefer counting up to counting down. Run it: python examples/dpo.py
"""

import copy

import torch
import upge
from tiny_model import TinyModel

NUMBERS, LENGTH, STEPS, BETA = 16, 4, 30, 0.5

torch.manual_seed(0)
model = TinyModel(NUMBERS)
reference = copy.deepcopy(model).requires_grad_(False)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
prompts = torch.arange(NUMBERS)[:, None]
chosen = (prompts + torch.arange(LENGTH + 1)) % NUMBERS
rejected = (prompts - torch.arange(LENGTH + 1)) % NUMBERS


def sequence_logprobs(network: TinyModel, ids: torch.Tensor) -> torch.Tensor:
    """(B,) log-probabilities of the responses in ids (B, 1 + LENGTH), given their first token."""
    hidden = network.hidden(ids[:, :-1]).flatten(0, 1)
    out = upge.linear_logprobs(hidden, network.lm_head.weight, ids[:, 1:].flatten())
    return out.logprobs.view(len(ids), LENGTH).sum(1)


losses, margins = [], []
for step in range(STEPS):
    gains = [sequence_logprobs(model, ids) - sequence_logprobs(reference, ids) for ids in (chosen, rejected)]
    margin = gains[0] - gains[1]
    loss = -torch.nn.functional.logsigmoid(BETA * margin).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    margins.append(margin.mean().item())
    if step % 10 == 0 or step == STEPS - 1:
        print(f"step {step:2}  loss {losses[-1]:.3f}  margin {margins[-1]:.2f}")
