"""Check the values of a question's fields and convert them.

Each function takes the value of a record, or `MISSING`, and returns the value of a `Question`. Its ValueError says what
is wrong; the message is to follow "field 'NAME' ".
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from hpt.data.columns import MISSING
from hpt.data.problems import describe

Message: TypeAlias = dict[str, str]
"""A message of a chat: its role (system, user or assistant) and its content."""

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def prompt(value: Any) -> str | tuple[Message, ...]:
    """A text, or the messages of a chat whose last is the user's."""
    if not isinstance(value, list):
        return _text(value, "a string, or a list of {role, content} messages")
    messages = _messages(value)
    turns = [message["role"] for message in messages]
    if turns[:1] == ["system"]:
        turns = turns[1:]
    in_turn = all(role == ("user", "assistant")[place % 2] for place, role in enumerate(turns))
    if not in_turn or len(turns) % 2 == 0:
        raise ValueError(
            f"has messages in the order {_roles(messages)}; "
            "allowed: an optional system message, then user and assistant in turn, the user last"
        )
    for message in messages:
        if message["role"] != "system" and not message["content"].strip():
            raise ValueError(f"has an empty {message['role']} message; a question needs text")
    return messages


def answer(value: Any) -> str:
    """A text, or a number as text."""
    if _is_number(value) and math.isfinite(value):
        return str(value)
    return _text(value, "a string or a finite number")


def demonstration(value: Any) -> str | None:
    """A text, or the content of a single message; None where there is none."""
    if value is MISSING or value is None or value == "" or value == []:
        return None
    if isinstance(value, list):
        messages = _messages(value)
        if [message["role"] for message in messages] != ["assistant"]:
            raise ValueError(
                f"has messages in the order {_roles(messages)}; allowed: one assistant message, or a string"
            )
        value = messages[0]["content"]
    return _text(value, "a string, or a list of one assistant message")


def required_demonstration(value: Any) -> str:
    """As `demonstration`, but there must be one."""
    text = demonstration(value)
    if text is None:
        raise ValueError(f"{_is(value)}; training on demonstrations needs one for every question")
    return text


def label(value: Any) -> str | None:
    """A text, or a number as text; None where there is none."""
    if value is MISSING or value is None or value == "":
        return None
    if _is_number(value):
        return str(value)
    return _text(value, "a string or a number")


def _messages(value: list[Any]) -> tuple[Message, ...]:
    messages = []
    for place, message in enumerate(value, start=1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise ValueError(
                f"has {describe(message)} as message {place}; allowed: an object with a role "
                "(system, user or assistant) and a content that is a string"
            )
        messages.append({"role": role, "content": _check_characters(content)})
    return tuple(messages)


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
