"""Questions as tokens: what the model is asked, what it is shown as a response, and where it should stop.

A prompt's tokens and a response's are made apart and laid side by side, never tokenised again as one text: training
sees exactly the prompt that rollouts saw. A demonstration never passes through the chat template, which could
rewrite it (Qwen3's drops or adds <think> blocks); only what the template puts around an assistant's message is
learnt from it, once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jinja2 import TemplateError
from rich.console import Group, RenderableType
from rich.text import Text

from hpt.data.questions import Message, Question
from hpt.data.readers import first_few
from hpt.support.errors import ConfigError, DataError, HptError
from hpt.support.hub import find_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hpt.config.schema import PromptConfig

VOCABULARY_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
_QUESTION, _ANSWER = "hpt-question", "hpt-answer"  # what no template holds
_CHUNK = 256  # questions tokenised at once
_SHOWN = 3000  # characters of a text shown at start
_CONTROL = {code: chr(0x2400 + code) for code in range(32)} | {ord("\n"): "↵\n", ord("\t"): "\t"}
_OPEN_THINK = re.compile(r"<think>\s*\Z")
_CLOSED_THINK = re.compile(r"</think>\s*\Z")


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or hub name; HptError where there is none."""
    from transformers import AutoTokenizer

    folder = Path(path).expanduser()
    # Without its files transformers builds an empty tokenizer for some models (Qwen2) rather than fail.
    if folder.is_dir() and not any(any(folder.glob(name)) for name in VOCABULARY_FILES):
        raise HptError(
            f"model.path: the folder {path} has no tokenizer: expected one of {', '.join(VOCABULARY_FILES)}, "
            "as tokenizer.save_pretrained writes them"
        )
    if not folder.is_dir() and path.startswith(("/", "./", "../", "~")):
        raise HptError(f"model.path: {path} is no folder")
    if not folder.is_dir():
        find_hub()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else path, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # broken JSON, a missing library, an unreachable hub, a model without a tokenizer
        reason = str(error).strip().splitlines()[:1] or [""]
        raise HptError(
            f"model.path: no tokenizer could be loaded from {path}: {type(error).__name__}: {reason[0]}"
        ) from error
    if len(tokenizer) < 2:
        raise HptError(f"model.path: the tokenizer of {path} has {len(tokenizer)} tokens: its vocabulary is missing")
    return tokenizer


def generation_ends(path: str) -> list[int]:
    """The end tokens that a model's generation_config.json names; none where there is no such file."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(str(Path(path).expanduser())).eos_token_id
    except OSError:
        return []
    return [ends] if isinstance(ends, int) else list(ends or [])


class PromptRenderer:
    """Turns questions into token ids.

    Prompt, style "chat": the chat template over the question's messages, with the generation prompt. `system`, where
    given, takes the place of the data's system message (empty: there is none); `template` wraps the last user message.
    Prompt, style "plain": `template` with the last user message in place of {question} and nothing else (the data's
    system message, written for a chat, is left out). Either way it starts with a BOS token, once, where the tokenizer
    adds one. A prompt of which a small vocabulary has no token at all is an EOS token.

    Response: the demonstration, verbatim, and the token that ends an answer, which is one of `stop_ids`: what the chat
    template puts after an assistant's message, or else, and in style "plain", the tokenizer's EOS. Where the prompt
    ends in an opened <think>, the demonstration's own <think> is that one.

    eos_token_ids: end tokens of the model (`generation_ends`); these end a rollout, too.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: PromptConfig,
        *,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config
        if config.style == "plain" and config.system is not None:
            raise ConfigError("prompt.system needs prompt.style=chat; a plain prompt is all in prompt.template")
        if config.style == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"prompt.style=chat, but the tokenizer of {self._model} has no chat template: "
                "set prompt.style=plain, and the wording in prompt.template"
            )
        with_special, plain = (self._encode([_QUESTION], special=special)[0] for special in (True, False))
        bos = tokenizer.bos_token_id
        self._adds_bos = bos is not None and with_special[:1] == [bos] != plain[:1]
        # Tokenizers in the manner of SentencePiece put a space before every text; "\n" takes it upon itself.
        newline, text, both = self._encode(["\n", _QUESTION, "\n" + _QUESTION])
        self._anchor = [] if newline + text == both else newline

        self._before, self._after = "", [tokenizer.eos_token_id]
        probe = Question("(any)", _QUESTION, "")
        prompt = self.prompt_text(probe)
        self._opened = "".join(_OPEN_THINK.findall(prompt))
        self._closed = _CLOSED_THINK.search(prompt) is not None
        if config.style == "chat":
            self._before, self._after = self._around_assistant(probe, prompt)
        if self._after == [None]:
            raise ConfigError(f"the tokenizer of {self._model} has no eos_token, so no answer could end")
        ends = [self._after[-1], *eos_token_ids, tokenizer.eos_token_id]
        self.stop_ids: list[int] = list(dict.fromkeys(end for end in ends if end is not None))

    @property
    def _model(self) -> str:
        return self.tokenizer.name_or_path or "this model"

    def prompt_text(self, question: Question) -> str:
        """The prompt as rendered, without a BOS that only the tokenizer adds."""
        messages = self._messages(question)
        if self.config.style == "plain":
            return messages[-1]["content"]
        return self._render(messages, question, generation_prompt=True)

    def prompt_ids(self, question: Question) -> list[int]:
        """Token ids of the prompt, for rollouts and for training alike."""
        return self.encode_prompts([question])[0]

    def demonstration_ids(self, question: Question) -> list[int]:
        """Token ids of the demonstration as the response to `prompt_ids`, with the token that ends it."""
        return self.encode_demonstrations([question])[0]

    def encode_prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """`prompt_ids` of each question; tokenising many at once is faster."""
        prompts = self._encode([self.prompt_text(question) for question in questions])
        bos = self.tokenizer.bos_token_id
        prompts = [[bos, *ids] if self._adds_bos and ids[:1] != [bos] else ids for ids in prompts]
        return [ids or [self.tokenizer.eos_token_id] for ids in prompts]

    def encode_demonstrations(self, questions: Sequence[Question]) -> list[list[int]]:
        """`demonstration_ids` of each question; tokenising many at once is faster."""
        texts = [self._before + self._demonstration(question) for question in questions]
        responses = []
        for question, ids in zip(questions, self._encode_continuations(texts), strict=True):
            response = ids if ids[-1:] == self._after[-1:] else ids + self._after
            early = next((id for id in response[:-1] if id in self.stop_ids), None)
            if early is not None:
                raise DataError(
                    f"question {question.id}: its demonstration goes on after {self.tokenizer.decode([early])!r}, "
                    "at which an answer stops; remove that token from the data"
                )
            responses.append(response)
        return responses

    def _messages(self, question: Question) -> list[Message]:
        prompt = question.prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        system, turns = ([], messages) if messages[0]["role"] != "system" else (messages[:1], messages[1:])
        if self.config.style == "plain" and len(turns) > 1:
            raise DataError(f"question {question.id} has several turns, which needs prompt.style=chat")
        if self.config.system is not None:
            system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        # Not str.format: templates hold braces of their own, as in \\boxed{}.
        wrapped = self.config.template.replace("{question}", turns[-1]["content"])
        return [*system, *turns[:-1], {"role": "user", "content": wrapped}]

    def _render(self, messages: list[Message], question: Question, *, generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
            )
        except (TemplateError, TypeError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"question {question.id}: the chat template of {self._model} refuses messages of {roles}: {error}. "
                'prompt.system="" leaves the system message out'
            ) from error

    def _around_assistant(self, probe: Question, prompt: str) -> tuple[str, list[int]]:
        """Text between prompt and answer (white space, if any), and the tokens after an answer, its end token last."""
        messages = self._messages(probe)
        answered = self._render([*messages, {"role": "assistant", "content": _ANSWER}], probe, generation_prompt=False)
        head, _, tail = answered.rpartition(_ANSWER)
        between = head[len(prompt) :] if head.startswith(prompt) else ""
        if between.strip() and prompt == self._render(messages, probe, generation_prompt=False):
            raise ConfigError(
                f"the chat template of {self._model} ignores add_generation_prompt: a prompt would stop before "
                f"{between!r}. Mend the template, or set prompt.style=plain"
            )
        after = self._encode_continuations([tail])[0]
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special.update(self.tokenizer.all_special_ids)
        end = next((place for place, id in enumerate(after) if id in special), None)
        return (
            between if between.isspace() else "",
            [self.tokenizer.eos_token_id] if end is None else after[: end + 1],
        )

    def _demonstration(self, question: Question) -> str:
        text = question.demonstration
        if text is None:
            raise DataError(f"question {question.id} has no demonstration")
        thinks = text.lstrip().startswith("<think>")
        if self._closed and thinks:
            raise DataError(
                f"question {question.id}: its demonstration begins with <think>, but the prompt ends in </think>"
            )
        if self._opened:
            if "</think>" not in text:
                raise DataError(
                    f"question {question.id}: the prompt ends in <think>, but its demonstration never ends the thought "
                    "with </think>; use such demonstrations, or a template that opens no <think>"
                )
            if thinks:
                whole = text.startswith(self._opened)
                text = text[len(self._opened) :] if whole else text.lstrip().removeprefix("<think>")
        return text

    def _encode_continuations(self, texts: list[str]) -> list[list[int]]:
        """Tokens of texts that follow others."""
        if not self._anchor:
            return self._encode(texts)
        encoded = self._encode(["\n" + text for text in texts])
        for text, ids in zip(texts, encoded, strict=True):
            if ids[: len(self._anchor)] != self._anchor:
                raise DataError(f"the tokenizer of {self._model} joins a line break with {text[:20]!r}")
        return [ids[len(self._anchor) :] for ids in encoded]

    def _encode(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else []


@dataclass(frozen=True)
class Selection:
    """Questions that fit, and how many did not because of their prompt or their demonstration.

    longest_prompt, longest_example: tokens, of those that fit; an example is a prompt and its demonstration, if any.
    """

    questions: list[Question]
    long_prompts: int
    long_demonstrations: int
    longest_prompt: int
    longest_example: int

    @property
    def dropped(self) -> int:
        return self.long_prompts + self.long_demonstrations


def select_by_length(
    questions: Sequence[Question],
    renderer: PromptRenderer,
    *,
    max_prompt_tokens: int | None,
    max_demonstration_tokens: int | None,
    on_long: Literal["drop", "error"] = "drop",
    source: str = "the data",
) -> Selection:
    """The questions whose prompt and demonstration fit their limits, in tokens (None: any length).

    Nothing is truncated: a demonstration that stops half way would teach half solutions. What is too long is dropped
    and counted, or with on_long="error" raises DataError with id, length and limit, beginning with
    the name `source`. A demonstration's length counts
    the token that ends it; a question without one has only its prompt to fit.
    """
    kept: list[Question] = []
    lengths = [(0, 0)]
    long_prompts: list[str] = []
    long_demonstrations: list[str] = []
    for start in range(0, len(questions), _CHUNK):
        chunk = questions[start : start + _CHUNK]
        demonstrated = [question for question in chunk if question.demonstration is not None]
        responses = iter(renderer.encode_demonstrations(demonstrated))
        for question, prompt in zip(chunk, renderer.encode_prompts(chunk), strict=True):
            response = [] if question.demonstration is None else next(responses)
            if max_prompt_tokens is not None and len(prompt) > max_prompt_tokens:
                long_prompts.append(f"{question.named}: prompt of {len(prompt)} tokens, limit {max_prompt_tokens}")
            elif max_demonstration_tokens is not None and len(response) > max_demonstration_tokens:
                long_demonstrations.append(
                    f"{question.named}: demonstration of {len(response)} tokens, limit {max_demonstration_tokens}"
                )
            else:
                kept.append(question)
                lengths.append((len(prompt), len(prompt) + len(response)))
    if on_long == "error" and len(kept) < len(questions):
        lines = first_few([*long_prompts, *long_demonstrations])
        raise DataError(
            "\n  ".join([f"{source}: {len(questions) - len(kept)} of {len(questions)} questions are too long:", *lines])
        )
    longest = [max(column) for column in zip(*lengths, strict=True)]
    return Selection(kept, len(long_prompts), len(long_demonstrations), *longest)


def show_first(renderer: PromptRenderer, question: Question) -> RenderableType:
    """What the model gets of a question, to print: prompt and response with every special token, trained or not."""

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
    """The text of tokens with line breaks and control characters to be seen; the middle of a long one is left out."""
    text = str(renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if len(text) > _SHOWN:
        hidden = len(text) - _SHOWN
        text = f"{text[: _SHOWN // 2]} [{hidden} characters not shown] {text[-(_SHOWN // 2) :]}"
    names = sorted((str(token) for token in renderer.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    shown = Text(style=style)
    for place, piece in enumerate(re.split(f"({'|'.join(map(re.escape, names))})", text)):
        shown.append(piece.translate(_CONTROL), style="bold magenta" if place % 2 else "")
    return shown
