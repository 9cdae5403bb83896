"""Show the first question as the model sees it."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.text import Text

from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question

_SHOWN = 3000  # characters of a text
_CONTROL_CHARACTERS = {code: chr(0x2400 + code) for code in range(32)} | {ord("\n"): "↵\n", ord("\t"): "\t"}


def show_first(renderer: PromptRenderer, question: Question) -> RenderableType:
    """The prompt and response of a question, to be printed: every special token, and whether it is trained."""

    def name(token: int) -> str:
        return f"{renderer.tokenizer.decode([token])} ({token})"

    prompt = renderer.prompt_ids(question)
    shown = [
        Text(f"Prompt of question {question.id}: {len(prompt)} tokens, not trained", style="bold"),
        _visible(renderer, prompt, "dim"),
    ]
    if question.demonstration is None:
        shown.append(Text("Response: sampled by the model", style="bold"))
    else:
        response = renderer.demonstration_ids(question)
        title = f"Demonstration: {len(response)} tokens, trained, the last one {name(response[-1])}"
        shown += [Text(title, style="bold green"), _visible(renderer, response, "green")]
    shown.append(Text(f"Rollouts stop at {', '.join(map(name, renderer.stop_ids))}", style="bold"))
    return Group(*shown)


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
        shown.append(piece.translate(_CONTROL_CHARACTERS), style="bold magenta" if place % 2 else "")
    return shown
