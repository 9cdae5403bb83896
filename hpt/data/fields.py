"""Check the values of a question's fields and convert them.

Each function takes the value of a record, or `MISSING`, and returns what a `Question` is made of. Its ValueError says
what is wrong; the message is to follow "field 'NAME' ".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from hpt.config.sections.data import OWN_TEMPLATE_KWARGS
from hpt.data.columns import MISSING
from hpt.data.problems import describe

Message: TypeAlias = dict[str, Any]
"""A message of a chat: its role, its content (a text) and what else the data has (tool_calls, reasoning_content)."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_OPENING = ("system", "developer")

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def is_more_than_text(message: Message) -> bool:
    """Whether only a chat template can put the message into words."""
    return any(message.get(key) for key in ("tool_calls", "reasoning_content", "reasoning", "thinking"))


def is_trained(message: Message) -> bool:
    """Whether SFT may train on the message: an assistant's, unless the data gives it OpenAI's weight of 0."""
    return bool(message["role"] == "assistant" and message.get("weight", 1))


def prompt(value: Any) -> str | tuple[Message, ...]:
    """A text, or the messages of a chat whose last is the user's or a tool's."""
    if not isinstance(value, list):
        return _text(value, "a string, or a list of {role, content} messages")
    return _checked_prompt(_messages(value))


def _checked_prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """`messages`, if they can be a prompt."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] and roles[0] in _OPENING else roles
    misplaced = any(role in _OPENING for role in turns)
    if misplaced or "user" not in turns or turns[0] == "tool" or turns[-1] == "assistant":
        raise ValueError(
            f"has messages in the order {_roles(messages)}; "
            "allowed: an optional system or developer message, then those of user, assistant and tool, "
            "the last one from the user or a tool"
        )
    for message in messages:
        if message["role"] == "user" and not message["content"].strip():
            raise ValueError("has an empty user message; a question needs text")
        if message["role"] == "assistant" and not _says_something(message):
            raise ValueError("has an empty assistant message")
    return messages


def conversation(value: Any) -> tuple[tuple[Message, ...], Message | None]:
    """A conversation as the messages before its demonstration, and the demonstration.

    That is its last message, of the assistant; None where another's is the last. Where the last has a weight of 0, it
    is the last assistant message that has not, None where there is none; what follows is left out.
    """
    messages = _messages(_parsed(value, "a list of {role, content} messages, or JSON text of one"))
    if not messages or messages[-1]["role"] != "assistant":
        return _checked_prompt(messages), None
    if len(messages) == 1:
        raise ValueError("has a single assistant message; allowed: at least one message of the user before it")
    if not _says_something(messages[-1]):
        raise ValueError("has an empty assistant message as its last")
    _checked_prompt(messages[:-1])
    end = _last_trained(messages)
    if end is None:
        return messages[:-1], None
    return _checked_prompt(messages[:end]), messages[end]


def required_answer(value: Any) -> str:
    """A text, or a number as text."""
    if _is_number(value) and math.isfinite(value):
        return str(value)
    return _text(value, "a string or a finite number")


def answer(value: Any) -> str | None:
    """As `required_answer`; None where there is none."""
    return None if _is_nothing(value) else required_answer(value)


def demonstration(value: Any) -> str | tuple[Message, ...] | None:
    """A text, or the messages that follow the prompt, the last one the assistant's; None where there is none.

    Weights of 0 are read as in `conversation`.
    """
    if _is_nothing(value):
        return None
    if not isinstance(value, list):
        return _text(value, "a string, or a list of messages that ends with the assistant's")
    messages = _messages(value)
    if messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant":
        raise ValueError(
            f"has messages in the order {_roles(messages)}; allowed: one assistant message, or several messages of "
            "which the first and the last are the assistant's, or a string"
        )
    for message in messages:
        if message["role"] == "assistant" and not _says_something(message):
            raise ValueError("has an empty assistant message")
    end = _last_trained(messages)
    return None if end is None else messages[: end + 1]


def required_demonstration(value: Any) -> str | tuple[Message, ...]:
    """As `demonstration`, but there must be one."""
    found = demonstration(value)
    if found is None:
        raise ValueError(
            f"{_is(value)}; training on demonstrations needs one for every question, unless "
            "data.missing_demonstrations says otherwise: drop or rollouts"
        )
    return found


def required_conversation(value: Any) -> tuple[tuple[Message, ...], Message | None]:
    """As `conversation`, but it must end with an assistant message."""
    messages, turn = conversation(value)
    if turn is None:
        raise ValueError(
            f"has messages in the order {_roles(messages)}; training on demonstrations needs an assistant message, "
            "not of weight 0, as the last of every question, unless data.missing_demonstrations says otherwise: drop "
            "or rollouts"
        )
    return messages, turn


def tools(value: Any) -> list[dict[str, Any]] | None:
    """The list of tools that a chat template is given; None where there are none."""
    if _is_nothing(value):
        return None
    allowed = "a list of objects, or JSON text of one"
    value = _parsed(value, allowed)
    if not all(isinstance(tool, dict) for tool in value):
        raise ValueError(f"{_is(value)}; allowed: {allowed}")
    return _without_nulls(value) or None


def chat_template_kwargs(value: Any) -> dict[str, Any] | None:
    """What a record hands to its chat template; None where that is nothing."""
    if _is_nothing(value):
        return None
    kwargs: dict[str, Any] = _without_nulls(_parsed(value, "an object, or JSON text of one", dict))
    if own := sorted(kwargs.keys() & set(OWN_TEMPLATE_KWARGS)):
        raise ValueError(f"has {', '.join(own)}, which hpt itself sets")
    return kwargs or None


def label(value: Any) -> str | None:
    """A text, or a number as text; None where there is none."""
    if value is MISSING or value is None or value == "":
        return None
    if _is_number(value):
        return str(value)
    return _text(value, "a string or a number")


def _parsed(value: Any, allowed: str, kind: type = list) -> Any:
    """A list, or another kind of value, which may be given as JSON text, as a CSV file has it."""
    parsed = value
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{_is(value)}, which is not JSON ({error}); allowed: {allowed}") from None
    if not isinstance(parsed, kind):
        raise ValueError(f"{_is(value)}; allowed: {allowed}")
    return parsed


def _messages(value: list[Any]) -> tuple[Message, ...]:
    return tuple(_message(message, place) for place, message in enumerate(value, start=1))


def _message(value: Any, place: int) -> Message:
    """A message without the keys that are null: a table has every key in every message. ShareGPT's get our keys."""
    message = _without_nulls(value) if isinstance(value, dict) else {}
    if "role" not in message and isinstance(message.get("from"), str):
        role, text = message.pop("from"), message.pop("value", None)
        message = {"role": _SHAREGPT_ROLES.get(role, role), "content": text, **message}
    content = message.get("content", "" if "tool_calls" in message else None)
    if isinstance(content, list):
        content = _joined(content)
    if message.get("role") not in ROLES or not isinstance(content, str):
        raise ValueError(
            f"has {describe(value)} as message {place}; allowed: an object with a role "
            f"({', '.join(ROLES[:-1])} or {ROLES[-1]}) and a content that is a string, or ShareGPT's from and value"
        )
    if message["role"] == "assistant" and message.get("weight", 1) not in (0, 1):
        raise ValueError(f"has a weight of {describe(message['weight'])} in message {place}; allowed: 0 or 1")
    return {**message, "content": _check_characters(content)}


def _last_trained(messages: tuple[Message, ...]) -> int | None:
    """The place of the last message that SFT may train on."""
    return max((place for place, message in enumerate(messages) if is_trained(message)), default=None)


def _joined(parts: list[Any]) -> str | None:
    """The text of a content in parts, [{"type": "text", "text": ...}, ...]; None where a part is something else."""
    texts = []
    for part in parts:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            return None
        texts.append(part["text"])
    return "".join(texts)


def _says_something(message: Message) -> bool:
    return bool(message["content"].strip() or message.get("tool_calls"))


def _without_nulls(value: Any) -> Any:
    """`value` without the keys of objects that are null, at any depth but in the arguments of a tool call."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None}
        return {key: item if key == "arguments" else _without_nulls(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _is_nothing(value: Any) -> bool:
    return value is MISSING or value is None or value in ("", [])


def _roles(messages: Iterable[Message]) -> str:
    return ", ".join(message["role"] for message in messages) or "(none)"


def _text(value: Any, allowed: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_is(value)}; allowed: {allowed}")
    if not value.strip():
        raise ValueError(f"is empty ({value!r}); allowed: {allowed}")
    return _check_characters(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is(value: Any) -> str:
    return "is missing" if value is MISSING else f"is {describe(value)}"


def _check_characters(text: str) -> str:
    bad = _NOT_TEXT.search(text)
    if bad:
        what = "a NUL character" if bad[0] == "\0" else f"half of a surrogate pair ({bad[0]!a})"
        raise ValueError(f"holds {what} at position {bad.start()}; no tokenizer accepts it")
    return text
