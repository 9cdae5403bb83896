"""Rollouts with their text, for those who read responses rather than train on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.rollout.engine import RolloutEngine, Sampling
from hpt.rollout.rollout import Rollout


def response_text(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> str:
    """What the verifier reads: the response without its stop token and other special tokens."""
    return str(tokenizer.decode(rollout.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def response_generator(
    engine: RolloutEngine, renderer: PromptRenderer, sampling: Sampling, seed: int
) -> Callable[[Sequence[Question]], list[list[Rollout]]]:
    """questions -> `sampling.n` rollouts of each, with their text, for `hpt.evaluation.evaluate`."""

    def generate(questions: Sequence[Question]) -> list[list[Rollout]]:
        groups = engine.generate(renderer.encode_prompts(questions), sampling, seed)
        for group in groups:
            for rollout in group:
                rollout.text = response_text(renderer.tokenizer, rollout)
        return groups

    return generate
