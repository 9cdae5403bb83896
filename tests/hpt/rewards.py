"""Verifier functions for tests: light to import, and earnable by a random model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def has_a_digit(response: str, answer: str) -> bool:
    """About one random response in two: the first characters are a digit."""
    return any(character.isdigit() for character in response[:2])


def begins_with_a_digit(response: str, answer: str) -> bool:
    """About two random responses in five."""
    return response[:1].isdigit()


def of_one(response: str) -> float:
    return 0.0


def never(response: str, answer: str) -> float:
    return 0.0


def always(response: str, answer: str) -> float:
    return 1.0


# Reward functions in TRL's form.


def share_of_digits(completions: list[str], log_extra: Callable[..., None], **columns: Any) -> list[float]:
    log_extra("together", [len(completions)] * len(completions))
    log_extra("read", completions)
    return [sum(map(str.isdigit, text)) / max(1, len(text)) for text in completions]


async def minus_length(completion_ids: list[list[int]], answer: list[str]) -> list[float]:
    assert len(answer) == len(completion_ids)
    return [-float(len(ids)) for ids in completion_ids]


def fails_in_step_2(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    if trainer_state.global_step == 1:
        raise ValueError("no luck")
    return [1.0] * len(completions)


def by_a_column(completions: list[str], **columns: Any) -> list[float | None]:
    return columns.get("no_such_column", [None] * len(completions))
