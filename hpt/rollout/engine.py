"""What the trainer asks of an inference engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: `n` a prompt, at most `max_tokens` each; temperature 0 is greedy."""

    n: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Rollout:
    """One response. It ends in a stop token ("stop") or at the limit ("length")."""

    tokens: list[int]
    logprobs: list[float]
    """log pi(token) in nats at the sampling temperature (1 where greedy), before any top-p cut; one a token.

    NaN where the engine cannot tell: vLLM with a top_p below 1 beside a temperature other than 1, or in an evaluation.
    """
    finish_reason: Literal["stop", "length"]


OnRollout = Callable[[int, int, Rollout], None]
"""Is given a finished rollout, with its prompt's place and its own place among the prompt's rollouts."""


class RolloutEngine:
    """Samples from the policy as it is. What an engine has no use for it need not define."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        """`sampling.n` rollouts of each prompt (token ids), in the order of the prompts; `seed` decides them.

        on_rollout: is given every rollout as soon as it is finished, while others are still generated.
        RolloutError, with its cause, where the engine fails.
        """
        raise NotImplementedError

    def sleep(self) -> None:
        """Gives memory back until the next `generate`: the trainer is about to train."""

    def weights_changed(self) -> None:
        """The policy was updated; the next `generate` must see its new weights."""

    def close(self) -> None:
        """Ends what the engine started. May be called again."""
