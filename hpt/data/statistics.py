"""What `hpt data` counts: lengths, and questions that occur more than once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from statistics import median

from hpt.data.questions import Question

_BINS = 8
_BAR = 20  # characters of the longest bar


def repeated(questions: Sequence[Question]) -> int:
    """How many questions have the prompt of an earlier one."""
    prompts = Counter(map(_prompt_key, questions))
    return len(questions) - len(prompts)


def in_both(train: Sequence[Question], held_out: Sequence[Question]) -> int:
    """How many held-out questions have the prompt of a training question."""
    known = set(map(_prompt_key, train))
    return sum(_prompt_key(question) in known for question in held_out)


def histogram(name: str, lengths: Sequence[int], limit: int | None) -> list[str]:
    """Lines of text that show how long something is, in tokens. limit: what is longer is marked."""
    if not lengths:
        return []
    ordered = sorted(lengths)
    lines = [f"{name}, in tokens: median {median(ordered):,.0f}, longest {ordered[-1]:,}"]
    if limit is not None:
        lines[0] += f", limit {limit:,}"
    width = _nice((ordered[-1] - ordered[0]) // _BINS + 1)
    bins = Counter(length // width for length in ordered)
    most = max(bins.values())
    digits = len(f"{ordered[-1]:,}")
    for number in range(min(bins), max(bins) + 1):
        first, last, count = number * width, (number + 1) * width - 1, bins[number]
        place = f"{first:>{digits},}" + (f" to {last:>{digits},}" if width > 1 else "")
        bar = "#" * -(-_BAR * count // most)
        over = " too long" if limit is not None and count and first > limit else ""
        lines.append(f"  {place} {bar:<{_BAR}} {count:,}{over}")
    return lines


def _nice(width: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ... from `width` on."""
    power = 10 ** (len(str(width)) - 1)
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)


def _prompt_key(question: Question) -> str:
    if isinstance(question.prompt, str):
        return question.prompt
    if len(question.prompt) == 1:
        return str(question.prompt[0]["content"])
    return json.dumps(question.prompt)
