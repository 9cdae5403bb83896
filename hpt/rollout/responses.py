"""Rollouts as text, for those who judge them rather than train on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.evaluation.evaluate import Response
from hpt.rollout.engine import Rollout, RolloutEngine, Sampling


def response_text(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> str:
    """What the verifier reads: the response without the token that ends it or other special tokens."""
    return str(tokenizer.decode(rollout.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def response_generator(
    engine: RolloutEngine, renderer: PromptRenderer, sampling: Sampling, seed: int
) -> Callable[[Sequence[Question]], list[list[Response]]]:
    """questions -> `sampling.n` responses of each, for `hpt.evaluation.evaluate.evaluate`."""

    def generate(questions: Sequence[Question]) -> list[list[Response]]:
        rollouts = engine.generate(renderer.encode_prompts(questions), sampling, seed)
        return [
            [
                Response(response_text(renderer.tokenizer, rollout), len(rollout.tokens), rollout.finish_reason)
                for rollout in group
            ]
            for group in rollouts
        ]

    return generate
