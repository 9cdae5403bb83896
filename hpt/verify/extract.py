"""Finds the final answer in a text. Only string operations, in linear time; nothing here parses mathematics."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

MAX_ANSWER = 2_000
"""Characters that a boxed or gold answer may have. The longest gold answer of the published test files has 210."""

FREE_TEXT = 2_000
"""How many characters, at the end of a response without a box, are searched for an answer."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_E_NOTATION = re.compile(r"(?<![\w.])(?:\d+(?:\.\d*)?|\.\d+)[eE][+-]?\d{1,3}(?![\w.]*\w)")
_BARE_POINT = re.compile(r"(?<=\d)\.(?![\d.])|(?<!\.)(?<!\\right)\.\s*$")
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")
_UNITS = re.compile(r"\\(?:text|mathrm)\s*\{[^{}]*\}")
_PROSE = re.compile(r"[A-Za-z]{2}")


class FinalAnswer(NamedTuple):
    text: str
    boxed: bool
    r"""True: `text` is the content of the last \boxed. False: it is the end of a response without one."""


def final_answer(response: str) -> FinalAnswer | None:
    r"""The content of the last `\boxed{...}`, or the last FREE_TEXT characters of a response without a box.

    None where there is nothing to grade: the response is empty, or its last box is empty, not closed (the response was
    truncated inside it) or longer than MAX_ANSWER characters.
    """
    start = None
    for box in _BOX.finditer(response):
        start = box.end()
    if start is None:
        text = response[-FREE_TEXT:].strip()
        return FinalAnswer(text, boxed=False) if text else None
    end = _closing_brace(response, start)
    text = "" if end is None else response[start:end].strip()
    return FinalAnswer(text, boxed=True) if text else None


def gold_text(answer: str) -> str | None:
    """A gold answer without its box, if it has one. None where no response could be compared with it."""
    final = final_answer(answer) if _BOX.search(answer) else FinalAnswer(answer.strip(), boxed=False)
    if final is None or not final.text or len(final.text) > MAX_ANSWER or "\0" in final.text:
        return None
    # Braces must balance: in "{text}" the brace that closes the first one must be the last character.
    if _closing_brace(final.text + "}", 0) != len(final.text):
        return None
    return final.text


def normalise(text: str) -> str:
    """Rewrites what math-verify misreads: `4.5e33` (it reads 4.5 * E * 33), `42.`, `-1./3`, `x.`."""
    return _BARE_POINT.sub("", expand_e_notation(text)).strip()


def expand_e_notation(text: str) -> str:
    """`1.5e3` as `1500`. Plain digits mean the same in LaTeX and in prose."""
    return _E_NOTATION.sub(lambda match: f"{Decimal(match[0]):f}", text)


def is_formula(text: str) -> bool:
    """Whether an unboxed answer is a single line with a formula, perhaps with units, and no prose."""
    return "\n" not in text and not _PROSE.search(_LATEX_COMMAND.sub(" ", _UNITS.sub(" ", text)))


def has_words_or_digits(text: str) -> bool:
    """Whether the text has more than LaTeX commands and punctuation, so that it can be compared as a string."""
    return any(character.isalnum() for character in _LATEX_COMMAND.sub("", text))


def _closing_brace(text: str, start: int) -> int | None:
    """The index of the brace that closes the one before `start`. None if it is not within MAX_ANSWER characters."""
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_ANSWER + 1):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None
