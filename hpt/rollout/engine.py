"""The rollout engine protocol: what the trainer asks of an inference engine, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpt.config.schema import Config
from hpt.rollout.rollout import Rollout


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: `n` per prompt, at most `max_tokens` each; temperature 0 is greedy."""

    n: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0

    @classmethod
    def for_training(cls, config: Config) -> Sampling:
        settings = config.rollout
        return cls(config.sampled, settings.max_tokens, settings.temperature, settings.top_p)

    @classmethod
    def for_evaluation(cls, config: Config) -> Sampling:
        settings = config.eval
        return cls(settings.n, config.eval_max_tokens, settings.temperature, settings.top_p)


OnRollout = Callable[[int, int, Rollout], None]
"""Called with the index of the prompt, the index of the rollout among the prompt's, and the finished rollout."""


class RolloutEngine:
    """Samples from the policy as it is now. All methods but `generate` do nothing unless an engine overrides them."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        """`sampling.n` rollouts of each prompt (token ids), in the order of the prompts; `seed` decides them.

        on_rollout: called with each rollout of the result as soon as it is finished, while others are generated.
        RolloutError, with its cause, where the engine fails.
        """
        raise NotImplementedError

    def sleep(self) -> None:
        """Frees memory until the next `generate`: the trainer is about to train."""

    def weights_changed(self) -> None:
        """The policy was updated; the next `generate` must use its new weights."""

    def close(self) -> None:
        """Ends what the engine started. May be called again."""
