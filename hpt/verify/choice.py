r"""Multiple choice: the letter of a response's final answer. Only string operations, in linear time."""

from __future__ import annotations

import re

from hpt.verify.extract import FREE_TEXT, final_answer, gold_text
from hpt.verify.verifier import Verifier

# What may surround a letter: LaTeX text commands, dollar signs, Markdown's bold, brackets. Possessive quantifiers (*+)
# do not backtrack.
_OPEN = r"(?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{|[\s$*{(\[])*+"
_CLOSE = r"[\s$*})\]]*+"
# In prose a choice is a separate word: "the answer is A" but not "the answer is A cat".
_LETTER = r"(?:([B-HJ-Z])(?![\w'])|([AI])(?![\w'])(?!\s+(?!because|since|as\b|and\b)[a-z])|(?<=\()([a-z])(?=\)))"
_HEDGE = r"(?!(?:,|/|or\b|and\b|&)\s*(?:option |choice )?[\s$*{(\[]*+[A-Z]\b)"

# A text that is a choice, with or without its wording: "B", "(B)", "B. 4 m/s", "(B) 4 m/s".
_CHOICE = re.compile(
    rf"{_OPEN}(?:(?i:option|choice|answer)\b[\s:]*+)?{_OPEN}([A-Za-z]){_CLOSE}(?:(?:[.:]|(?<=\))|(?<=\)\s)).*)?",
    re.DOTALL,
)
_STATED = re.compile(
    r"\b(?i:answer|choice|option)\b[\s*]*+(?i:is|would be|should be|must be|:|=)[\s*:]*+"
    rf"(?:(?i:option|choice|answer|letter)\s++)?{_OPEN}{_LETTER}{_CLOSE}{_HEDGE}"
)


class ChoiceVerifier(Verifier):
    r"""Compares the letter that a response chooses (`chosen_letter`) with the gold letter.

    A response that chooses no letter, or several, is unparsable.
    """

    grade = "hpt.verify.choice:grade"
    gradable = "hpt.verify.choice:gradable"


def chosen_letter(response: str) -> str | None:
    r"""The letter that a response chooses, in upper case, or None.

    Tried in this order: the content of the last `\boxed{...}` (`\boxed{B}`, `\boxed{\text{(B)}}`, `\boxed{B. 4 m/s}`);
    the last statement such as "the answer is (B)" or "Answer: B" in the last 2,000 characters; the response itself, if
    it is only a choice. "A or B" is not a choice.
    """
    final = final_answer(response)
    if final is not None and final.boxed and (match := _CHOICE.fullmatch(final.text)):
        return match[1].upper()
    end = response[-FREE_TEXT:]
    stated = None
    for match in _STATED.finditer(end):
        stated = next(letter for letter in match.groups() if letter)
    if stated:
        return stated.upper()
    whole = _CHOICE.fullmatch(end.strip())
    return whole[1].upper() if whole else None


def grade(response: str, answer: str) -> tuple[str, str]:
    """(status, detail) of a response; the status is "unusable" where the gold answer is not a letter."""
    gold = _gold_letter(answer)
    if gold is None:
        return "unusable", ""
    letter = chosen_letter(response)
    if letter is None:
        return "unparsable", "no choice was found"
    return ("correct" if letter == gold else "incorrect"), ""


def gradable(answer: str) -> bool:
    """Whether a gold answer is a letter."""
    return _gold_letter(answer) is not None


def _gold_letter(answer: str) -> str | None:
    match = _CHOICE.fullmatch(gold_text(answer) or "")
    return match[1].upper() if match else None
