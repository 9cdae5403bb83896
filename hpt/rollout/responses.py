"""Rollouts with their text, for those who read responses rather than train on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.rollout import Rollout


def response_text(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> str:
    """What the verifier reads: the response without its stop token and other special tokens."""
    return str(tokenizer.decode(rollout.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


GenerateResponses = Callable[[Sequence[Question], OnRollout | None], list[list[Rollout]]]
"""Gives the rollouts, with their text, of each question, in their order; the second argument as in `RolloutEngine`."""


def response_generator(
    engine: RolloutEngine, renderer: PromptRenderer, sampling: Sampling, seed: int
) -> GenerateResponses:
    """`sampling.n` rollouts of each question, for `hpt.evaluation.evaluate`."""

    def generate(questions: Sequence[Question], on_rollout: OnRollout | None) -> list[list[Rollout]]:
        def with_text(index: int, place: int, rollout: Rollout) -> None:
            rollout.text = response_text(renderer.tokenizer, rollout)
            if on_rollout:
                on_rollout(index, place, rollout)

        return engine.generate(renderer.encode_prompts(questions), sampling, seed, with_text)

    return generate
