"""Leave out questions whose prompt or demonstration is too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from hpt.data.problems import first_few
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.support.errors import DataError

_CHUNK = 256  # questions encoded at once


@dataclass(frozen=True)
class Selection:
    """The questions that fit, and how many were left out because of their prompt or their demonstration.

    longest_prompt, longest_example: in tokens, among those that fit; an example is a prompt with its demonstration, if
        it has one.
    lengths: tokens of the prompt and of the demonstration (0 if there is none) of every question, fitting or not.
    """

    questions: list[Question]
    long_prompts: int
    long_demonstrations: int
    longest_prompt: int
    longest_example: int
    lengths: list[tuple[int, int]]

    @property
    def dropped(self) -> int:
        return self.long_prompts + self.long_demonstrations


def select_by_length(
    questions: Sequence[Question],
    renderer: PromptRenderer,
    *,
    max_prompt_tokens: int | None,
    max_demonstration_tokens: int | None,
    all_turns: bool = False,
    on_long: Literal["drop", "error"] = "drop",
    source: str = "the data",
) -> Selection:
    """Select the questions whose prompt and demonstration fit their limits, in tokens (None: no limit).

    Nothing is truncated: a truncated demonstration would teach incomplete solutions. Questions that are too long
    are dropped and counted; with on_long="error" they raise DataError, which names `source` and each question's length
    and limit. A demonstration's length includes the token that ends it; a question without one only has its prompt to
    fit. With all_turns a conversation also has to be one that SFT can train on whole: DataError where it is not.
    """
    kept: list[Question] = []
    long_prompts: list[str] = []
    long_demonstrations: list[str] = []
    lengths: list[tuple[int, int]] = []
    longest_prompt = longest_example = 0
    for question, prompt, demonstration in _lengths(questions, renderer):
        lengths.append((prompt, demonstration))
        if max_prompt_tokens is not None and prompt > max_prompt_tokens:
            long_prompts.append(f"{question.named}: prompt of {prompt} tokens, limit {max_prompt_tokens}")
        elif max_demonstration_tokens is not None and demonstration > max_demonstration_tokens:
            long_demonstrations.append(
                f"{question.named}: demonstration of {demonstration} tokens, limit {max_demonstration_tokens}"
            )
        else:
            kept.append(question)
            longest_prompt = max(longest_prompt, prompt)
            longest_example = max(longest_example, prompt + demonstration)
            if all_turns and question.demonstration is not None:
                renderer.conversation(question)
    too_long = [*long_prompts, *long_demonstrations]
    if too_long and on_long == "error":
        title = f"{source}: {len(too_long)} of {len(questions)} questions are too long:"
        raise DataError("\n  ".join([title, *first_few(too_long)]))
    return Selection(kept, len(long_prompts), len(long_demonstrations), longest_prompt, longest_example, lengths)


def _lengths(questions: Sequence[Question], renderer: PromptRenderer) -> Iterator[tuple[Question, int, int]]:
    """Each question with the tokens of its prompt and of its demonstration (0 if it has none)."""
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        demonstrated = [question for question in chunk if question.demonstration is not None]
        demonstrations = iter(renderer.encode_demonstrations(demonstrated))
        for question, prompt in zip(chunk, renderer.encode_prompts(chunk), strict=True):
            demonstration = [] if question.demonstration is None else next(demonstrations)
            yield question, len(prompt), len(demonstration)
