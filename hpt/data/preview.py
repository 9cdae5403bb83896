"""Show questions as the model sees them."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.text import Text

from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.support.console import visible

_SHOWN = 3000  # characters of a text


def show_first(renderer: PromptRenderer, question: Question, *, all_turns: bool = False) -> RenderableType:
    """The first question of a run as the model sees it, and what ends its rollouts."""
    stops = ", ".join(_token(renderer, token) for token in renderer.stop_ids)
    row = show_row(renderer, question, all_turns=all_turns)
    return Group(row, Text(f"Rollouts stop at {stops}", style="bold"))


def show_row(renderer: PromptRenderer, question: Question, *, all_turns: bool = False) -> RenderableType:
    """The prompt and response of a question, to be printed: every special token, and which tokens are trained.

    all_turns: show every assistant turn as trained, as with `data.loss_on: all`.
    """
    conversation = renderer.conversation(question) if all_turns and question.demonstration is not None else None
    if conversation:
        trained = sum(conversation.mask)
        title = f"Conversation of question {question.id}: {len(conversation.tokens)} tokens, {trained} of them trained"
        shown = [Text(title, style="bold")]
        for ids, is_trained in conversation.parts:
            shown += _part(renderer, "Said" if is_trained else "Read", ids, is_trained)
        return Group(*shown)
    shown = _part(renderer, f"Prompt of question {question.id}", renderer.prompt_ids(question), False)
    if question.demonstration is None:
        shown.append(Text("Response: sampled by the model", style="bold"))
    else:
        shown += _part(renderer, "Demonstration", renderer.demonstration_ids(question), True)
    return Group(*shown)


def _part(renderer: PromptRenderer, name: str, ids: list[int], trained: bool) -> list[Text]:
    """The tokens of a part of a row under a line that says what they are."""
    if not trained:
        return [Text(f"{name}: {len(ids)} tokens, not trained", style="bold"), _visible(renderer, ids, "dim")]
    title = f"{name}: {len(ids)} tokens, trained, the last one {_token(renderer, ids[-1])}"
    return [Text(title, style="bold green"), _visible(renderer, ids, "green")]


def _token(renderer: PromptRenderer, token: int) -> str:
    return f"{renderer.tokenizer.decode([token])} ({token})"


def _visible(renderer: PromptRenderer, ids: list[int], style: str) -> Text:
    """The text of tokens, with visible line breaks and control characters; the middle of a long text is left out."""
    text = str(renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if len(text) > _SHOWN:
        hidden = len(text) - _SHOWN
        text = f"{text[: _SHOWN // 2]} [{hidden} characters not shown] {text[-(_SHOWN // 2) :]}"
    special = sorted((str(token) for token in renderer.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    shown = Text(style=style)
    # Splitting by a group keeps what it matches: every second piece is a special token.
    for place, piece in enumerate(re.split(f"({'|'.join(map(re.escape, special))})", text)):
        shown.append(visible(piece).replace("\n", "↵\n"), style="bold magenta" if place % 2 else "")
    return shown
