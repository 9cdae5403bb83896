"""The batches on which losses are measured, and the three GEMMs that any exact method needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import upge
from torch import Tensor
from upge.diagnosis import timing
from upge.heads import HEADS

# Width D and vocabulary V of each head.
SHAPES = {name: (d, v) for name, (v, d) in HEADS.items()} | {"rehearsal": (32, 200)}
CASES = ("sft", "grpo", "hpt")
SEQUENCE = 256  # tokens that share an advantage


@dataclass
class Problem:
    """Tokens sampled from the head's own softmax, whose entropy is a few nats. In the case hpt, half follow SFT."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    advantages: Tensor
    old_logprobs: Tensor
    is_sft: Tensor
    case: str

    @property
    def weights(self) -> Tensor:
        return torch.full_like(self.advantages, 1.0 / len(self.advantages))

    def surrogate(self, logprobs: Tensor) -> Tensor:
        """The loss of the case from differentiable log-probabilities, as trainers write it."""
        r = (logprobs - self.old_logprobs).exp()
        clipped = -torch.min(r * self.advantages, r.clamp(0.8, 1.2) * self.advantages)
        per_token = {"sft": -logprobs, "grpo": clipped, "hpt": torch.where(self.is_sft, -logprobs, clipped)}
        return per_token[self.case].mean()

    def fused(self, backend: str = "auto") -> Tensor:
        """The loss of the case by upge."""
        objectives = {"sft": [upge.SFT()], "grpo": [upge.GRPO()], "hpt": [upge.GRPO(), upge.SFT()]}[self.case]
        return upge.fused_policy_loss(
            self.hidden,
            self.weight,
            self.targets,
            objectives,
            objective_index=self.is_sft.int() if self.case == "hpt" else None,
            advantages=self.advantages,
            old_logprobs=self.old_logprobs,
            backend=backend,
        ).loss

    def first(self, count: int) -> Problem:
        """The first `count` tokens."""
        fields = {k: v[:count] if isinstance(v, Tensor) and k != "weight" else v for k, v in vars(self).items()}
        fields["hidden"] = self.hidden.detach()[:count].clone().requires_grad_()
        return Problem(**fields)  # type: ignore[arg-type]


def make_problem(
    shape: str, tokens: int, dtype: torch.dtype, device: str, case: str, no_signal: float = 0.0
) -> Problem:
    """no_signal: the share of tokens whose advantage is 0; whole sequences, if there are enough of them."""
    d, v = SHAPES[shape]
    generator = torch.Generator(device).manual_seed(0)
    randn = lambda *size: torch.randn(*size, device=device, generator=generator)
    hidden = randn(tokens, d).to(dtype)
    weight = (randn(v, d) * (3 / d**0.5)).to(dtype)
    targets = torch.empty(tokens, dtype=torch.long, device=device)
    for rows in torch.arange(tokens, device=device).split(256):
        p = (hidden[rows] @ weight.t()).float().softmax(-1)
        targets[rows] = torch.multinomial(p, 1, generator=generator).squeeze(1)
    with torch.no_grad():
        now = upge.linear_logprobs(hidden, weight, targets, backend="torch").logprobs
    sequence = torch.arange(tokens, device=device) // SEQUENCE
    advantages = randn(tokens)[sequence]
    # With few tokens the parts are shorter than a sequence, so that quarters are still exact.
    part = torch.arange(tokens, device=device) // max(1, min(SEQUENCE, tokens // 4))
    silent = ((part + 1) * no_signal).floor() > (part * no_signal).floor()
    return Problem(
        hidden.requires_grad_(),
        weight.requires_grad_(),
        targets,
        advantages.masked_fill(silent, 0.0),
        now + 0.1 * randn(tokens),
        torch.arange(tokens, device=device) % 2 == 0,
        case,
    )


def bare_gemms(problem: Problem) -> None:
    """The three GEMMs of the problem: the least that an exact method needs."""
    timing.bare_gemms(problem.hidden.detach(), problem.weight.detach())
