"""Render questions as token ids: the prompt, the demonstration as its response, and the tokens that end a response.

A prompt and its response are encoded separately and concatenated, never encoded again as one text: training sees
exactly the prompt that rollouts saw. The text of a demonstration never passes through the chat template, which could
rewrite it (Qwen3's drops or adds <think> blocks); it only gets what the template puts around an assistant's message.
What is no text, such as tool calls, and the earlier turns of a conversation are as the template writes them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpt.data.conversation import Conversation
from hpt.data.encoding import TextEncoder
from hpt.data.fields import Message, is_more_than_text, is_trained
from hpt.data.problems import describe
from hpt.data.questions import Question
from hpt.data.tokenizer import model_name
from hpt.support.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hpt.config.sections.data import PromptConfig

# A question and an answer to try a template with; no template contains these texts.
_PROBE = Question("(any)", "hpt-question", "")
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "hpt_tool", "description": "-", "parameters": {"type": "object", "properties": {}}},
}
_PROBE_ANSWER: Message = {"role": "assistant", "content": "hpt-answer"}


@dataclass(frozen=True)
class ResponseFormat:
    """What surrounds a response.

    opened_thought: the <think> at the end of the prompt, with the white space after it; "" if there is none.
    closed_thought: whether the prompt ends in </think>.
    lead: white space between prompt and answer, part of the response.
    end_ids: tokens after the answer, up to and including the one that ends a response.
    """

    opened_thought: str
    closed_thought: bool
    lead: str
    end_ids: list[int]


class PromptRenderer:
    """Turns questions into token ids.

    Prompt, style "chat": the chat template over the question's messages and tools, with the generation prompt. If
    `system` is given, it replaces the data's system or developer message (if it is empty, there is none); `template`
    wraps the last user message. The chat template also gets `chat_template_kwargs`, and the question's own.
    Prompt, style "plain": `template` with {question} replaced by the last user message, and nothing else; a system
    message and tools in the data, written for a chat, are left out.
    In both styles a prompt begins with a BOS token, once, if the tokenizer adds one and `bos` is true. A prompt for
    which a small vocabulary has no token at all is an EOS token.

    Response: the demonstration, verbatim, and the token that ends a response, which is one of `stop_ids`: what the chat
    template puts after an assistant's message; if it puts none, in style "plain" and with `end: eos`, the tokenizer's
    EOS. If the prompt ends in <think>, that is the demonstration's own <think>.

    eos_token_ids: end tokens of the model (`generation_ends`); they end a rollout, too.
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
        self._check_settings()
        self._encoder = TextEncoder(tokenizer, bos=config.bos)
        self._formats: dict[str, ResponseFormat] = {}
        ends = [self._format(_PROBE).end_ids[-1], *eos_token_ids, tokenizer.eos_token_id]
        self.stop_ids: list[int] = list(dict.fromkeys(end for end in ends if end is not None))

    def prompt_text(self, question: Question) -> str:
        """The prompt as rendered, without a BOS that only the tokenizer adds."""
        messages = self._messages(question)
        if self.config.style == "plain":
            return messages[-1]["content"]
        return self._render(messages, question, generation_prompt=True)

    def prompt_ids(self, question: Question) -> list[int]:
        """Token ids of the prompt, the same for rollouts and training."""
        return self.encode_prompts([question])[0]

    def demonstration_ids(self, question: Question) -> list[int]:
        """Token ids of the demonstration as the response to `prompt_ids`, with the token that ends it."""
        return self.encode_demonstrations([question])[0]

    def encode_prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        """`prompt_ids` of each question; faster than one by one."""
        return self._encoder.beginnings([self.prompt_text(question) for question in questions])

    def encode_demonstrations(self, questions: Sequence[Question]) -> list[list[int]]:
        """`demonstration_ids` of each question; faster than one by one."""
        texts = [self._response_text(question) for question in questions]
        responses = []
        for question, ids in zip(questions, self._encoder.continuations(texts), strict=True):
            if question.turn:
                response = ids[: self._length_to_end(question, ids)]
            else:
                end_ids = self._format(question).end_ids
                ends_itself = ids[-1:] == end_ids[-1:]
                response = ids if ends_itself else ids + end_ids
            self._check_ends_once(question, response)
            responses.append(response)
        return responses

    def conversation(self, question: Question) -> Conversation | None:
        """Prompt and demonstration with the earlier assistant turns marked, too; None where there are none to train.

        Each turn is encoded by itself, as it is generated, and follows the tokens that a rollout of it would see. An
        earlier one is trained up to and including the token that ends it. DataError where the chat template or the
        tokenizer writes a turn in another way once more messages follow: then no one row could hold all turns as they
        are generated.
        """
        messages = self._messages(question)
        places = [place for place, message in enumerate(messages) if is_trained(message)]
        if not places:
            return None
        prompt = self.prompt_text(question)
        read, said = [], []
        for place in places:
            before = self._render(messages[:place], question, generation_prompt=True)
            after = self._render(messages[: place + 1], question, generation_prompt=False)
            self._check_is_history(question, messages[place], place, before, after, prompt)
            read.append(before)
            said.append(after.removeprefix(before))
        row, *prompts = self._encoder.beginnings([*read, prompt])
        parts = [(row, False)]
        for place, ids, next_prompt in zip(places, self._encoder.continuations(said), prompts, strict=True):
            turn = ids[: self._length_to_end(question, ids)]
            row = row + turn
            self._check_tokens_are_history(question, messages[place], place, row, next_prompt)
            parts += [(turn, True), (next_prompt[len(row) :], False)]
            row = next_prompt
        parts.append((self.demonstration_ids(question), True))
        return Conversation([(ids, trained) for ids, trained in parts if ids])

    @property
    def ignores_tools(self) -> bool:
        """Whether a question's tools leave no trace in its prompt."""
        return self.prompt_text(_PROBE) == self.prompt_text(dataclasses.replace(_PROBE, tools=[_PROBE_TOOL]))

    # ---- prompts

    def _messages(self, question: Question) -> list[Message]:
        prompt = question.prompt
        turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        system: list[Message] = []
        if turns[0]["role"] in ("system", "developer"):
            system, turns = turns[:1], turns[1:]
        if self.config.style == "plain" and len(turns) > 1:
            raise DataError(f"question {question.id} has several turns, which needs prompt.style=chat")
        if self.config.system is not None:
            system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        last = max(place for place, message in enumerate(turns) if message["role"] == "user")
        # Not str.format: templates contain braces, as in \\boxed{}.
        wrapped = self.config.template.replace("{question}", turns[last]["content"])
        return [*system, *turns[:last], {**turns[last], "content": wrapped}, *turns[last + 1 :]]

    def _render(self, messages: list[Message], question: Question, *, generation_prompt: bool) -> str:
        tools: list[Any] | None = question.tools
        kwargs = self.config.chat_template_kwargs | (question.chat_template_kwargs or {})
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=tools, tokenize=False, add_generation_prompt=generation_prompt, **kwargs
                )
            )
        except Exception as error:  # a template is foreign code: 1/0, a range or a recursion without end
            roles = ", ".join(message["role"] for message in messages)
            hint = (
                '. prompt.system="" leaves the system message out' if roles.startswith(("system", "developer")) else ""
            )
            raise DataError(
                f"question {question.id}: the chat template of {model_name(self.tokenizer)} refuses messages of "
                f"{roles}: {str(error) or type(error).__name__}{hint}"
            ) from error

    # ---- responses

    def _response_text(self, question: Question) -> str:
        """What follows the prompt, without the token that ends it, unless the template has written it."""
        if question.turn is None:
            return self._format(question).lead + self._demonstration_text(question)
        if self.config.style == "plain":
            raise DataError(f"question {question.id}: its demonstration has tool calls, which needs prompt.style=chat")
        prompt = self.prompt_text(question)
        answered = self._render([*self._messages(question), question.turn], question, generation_prompt=False)
        if not answered.startswith(prompt):
            raise DataError(
                f"question {question.id}: its demonstration is more than text (tool calls, separate reasoning), and "
                f"the chat template of {model_name(self.tokenizer)} writes the prompt in another way before it"
            )
        return answered.removeprefix(prompt)

    def _demonstration_text(self, question: Question) -> str:
        """The demonstration without a <think> that already ends the prompt."""
        text = question.demonstration
        if text is None:
            raise DataError(f"question {question.id} has no demonstration")
        format = self._format(question)
        opened = format.opened_thought
        thinks = text.lstrip().startswith("<think>")
        if thinks and format.closed_thought:
            raise DataError(
                f"question {question.id}: its demonstration begins with <think>, but the prompt ends in </think>"
            )
        if opened and "</think>" not in text:
            raise DataError(
                f"question {question.id}: the prompt ends in <think>, but its demonstration has no </think> to end "
                "the thought; use demonstrations that have one, or a template that does not end in <think>"
            )
        if not (opened and thinks):
            return text
        if text.startswith(opened):
            return text.removeprefix(opened)
        return text.lstrip().removeprefix("<think>")

    def _length_to_end(self, question: Question, ids: list[int]) -> int:
        """The tokens of an assistant's message, as the template writes it, up to the one that ends it."""
        end = self._format(question).end_ids[-1]
        if end not in ids:
            raise DataError(
                f"question {question.id}: the chat template of {model_name(self.tokenizer)} does not end an "
                f"assistant's message with {self.tokenizer.decode([end])!r}, so no turn would learn to end"
            )
        return len(ids) - ids[::-1].index(end)

    def _check_is_history(
        self, question: Question, message: Message, place: int, before: str, after: str, prompt: str
    ) -> None:
        """DataError unless `prompt` goes on from `after`, a conversation that ends with `message`, and that from
        `before`, the prompt to it.
        """
        content = message["content"].strip()
        kept = after.startswith(before) and prompt.startswith(after)
        if kept and (is_more_than_text(message) or after.removeprefix(before).lstrip().startswith(content)):
            return
        raise DataError(
            f'{question.named}: data.loss_on "all" needs a chat template that keeps earlier turns as they were '
            f"generated, and that of {model_name(self.tokenizer)} rewrites message {place + 1}, the assistant's "
            f"{describe(message['content'])} (Qwen3's, for one, drops thoughts from earlier turns). Use "
            "data.loss_on=last, or make a question of each turn"
        )

    def _check_tokens_are_history(
        self, question: Question, message: Message, place: int, row: list[int], prompt: list[int]
    ) -> None:
        """DataError unless `prompt`, the next turn's, begins with `row`, the tokens up to the end of `message`."""
        if prompt[: len(row)] == row:
            return
        raise DataError(
            f'{question.named}: data.loss_on "all" needs a tokenizer that splits earlier turns as they were generated, '
            f"and that of {model_name(self.tokenizer)} splits message {place + 1}, the assistant's "
            f"{describe(message['content'])}, in another way once more messages follow. Use data.loss_on=last, or "
            "make a question of each turn"
        )

    def _check_ends_once(self, question: Question, response: list[int]) -> None:
        """DataError if the response goes on after a token that ends it."""
        for id in response[:-1]:
            if id in self.stop_ids:
                raise DataError(
                    f"question {question.id}: its demonstration goes on after {self.tokenizer.decode([id])!r}, "
                    "which ends a response; remove that token from the data"
                )

    # ---- what the tokenizer and its template do

    def _check_settings(self) -> None:
        if self.config.style == "plain" and self.config.system is not None:
            raise ConfigError(
                "prompt.system needs prompt.style=chat; in style plain, prompt.template is all of the prompt"
            )
        if self.config.style == "plain" and self.config.chat_template_kwargs:
            raise ConfigError("prompt.chat_template_kwargs needs prompt.style=chat; style plain has no chat template")
        if self.config.style == "chat" and not self.tokenizer.chat_template:
            raise ConfigError(
                f"prompt.style=chat, but the tokenizer of {model_name(self.tokenizer)} has no chat template: "
                "set prompt.style=plain, and the wording in prompt.template"
            )

    def _format(self, question: Question) -> ResponseFormat:
        """What surrounds the question's response, which may depend on its chat_template_kwargs."""
        kwargs = question.chat_template_kwargs
        key = json.dumps(kwargs, sort_keys=True)
        if key not in self._formats:
            self._formats[key] = self._find_response_format(dataclasses.replace(_PROBE, chat_template_kwargs=kwargs))
        return self._formats[key]

    def _find_response_format(self, probe: Question) -> ResponseFormat:
        """Render a made-up question and answer, and look at what surrounds the answer."""
        prompt = self.prompt_text(probe)
        opened = re.search(r"<think>\s*\Z", prompt)
        lead, end_ids = "", [self.tokenizer.eos_token_id]
        if self.config.style == "chat":
            before, after = self._around_answer(probe, prompt)
            lead = before if before.isspace() else ""
            if self.config.end == "turn":
                end_ids = self._end_ids(after)
        if end_ids == [None]:
            raise ConfigError(
                f"the tokenizer of {model_name(self.tokenizer)} has no eos_token, so no response could end"
            )
        return ResponseFormat(
            opened_thought=opened[0] if opened else "",
            closed_thought=re.search(r"</think>\s*\Z", prompt) is not None,
            lead=lead,
            end_ids=end_ids,
        )

    def _around_answer(self, probe: Question, prompt: str) -> tuple[str, str]:
        """The texts that the chat template puts between prompt and answer, and after the answer.

        The text between is "" if the template rewrites the prompt once there is an answer.
        """
        messages = self._messages(probe)
        answered = self._render([*messages, _PROBE_ANSWER], probe, generation_prompt=False)
        head, _, after = answered.rpartition(_PROBE_ANSWER["content"])
        between = head.removeprefix(prompt) if head.startswith(prompt) else ""
        if between.strip() and prompt == self._render(messages, probe, generation_prompt=False):
            raise ConfigError(
                f"the chat template of {model_name(self.tokenizer)} ignores add_generation_prompt: a prompt would "
                f"stop before {between!r}. Fix the template, or set prompt.style=plain"
            )
        return between, after

    def _end_ids(self, after: str) -> list[int]:
        """The tokens of the text after an answer, up to the first special one; the EOS if it has none."""
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special.update(self.tokenizer.all_special_ids)
        ids = self._encoder.continuations([after])[0]
        for place, id in enumerate(ids):
            if id in special:
                return ids[: place + 1]
        return [self.tokenizer.eos_token_id]
