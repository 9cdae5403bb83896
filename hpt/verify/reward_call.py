"""A call of a reward function. Runs only in worker processes."""

from __future__ import annotations

import asyncio
import inspect
import math
import reprlib
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hpt.config.sections.rewards import LARGEST_REWARD
from hpt.verify.functions import loaded


@dataclass(frozen=True)
class TrainerState:
    """What reward functions find in `trainer_state`, under the names of transformers' TrainerState."""

    global_step: int  # steps done
    max_steps: int
    epoch: float  # passes over the questions


def call_reward(reference: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the function says about the completions of one question.

    arguments: what TRL hands over, a list with an item per completion in each column, besides `trainer_state`.
    Returns {"rewards", "metrics", "extra"}, with what the function logged, or {"fault": what it did wrong}.
    """
    function = loaded(reference)
    metrics: dict[str, list[float]] = {}
    extra: dict[str, list[Any]] = {}

    def log_metric(name: str, value: float) -> None:
        metrics.setdefault(name, []).append(float(value))

    def log_extra(column: str, values: list[Any]) -> None:
        extra[column] = [value if isinstance(value, str | int | float | None) else str(value) for value in values]

    given = {**arguments, "log_metric": log_metric, "log_extra": log_extra}
    count = len(arguments["completions"])
    try:
        returned = function(**_accepted(function, given))
        if inspect.isawaitable(returned):
            returned = _event_loop().run_until_complete(_wait_for(returned))
        return {"rewards": _checked(returned, count), "metrics": metrics, "extra": extra}
    except MemoryError:
        raise
    except _NoRewards as error:
        return {"fault": str(error)}
    except BaseException as error:  # whatever the user's code raises, SystemExit too
        return {"fault": f"raised {type(error).__name__}: {error}{_place(error)}"}


def _place(error: BaseException) -> str:
    """Where the user's code raised. A function that was sent by cloudpickle no longer knows its file."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    if not frames:
        return ""
    last = frames[-1]
    sent = last.filename == "<dynamic-code>"
    return f" (in {last.name}, line {last.lineno})" if sent else f" ({last.filename}, line {last.lineno})"


def missing_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """The arguments that the function cannot do without and is not given."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        parameter.name
        for parameter in _parameters(function)
        if parameter.kind in named and parameter.default is parameter.empty and parameter.name not in given
    ]


def _accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the arguments, those that the function has a parameter for."""
    parameters = _parameters(function)
    if not parameters or any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return given
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in given.items() if name in names}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """None for some functions written in C, which have no signature."""
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:
        return []


class _NoRewards(Exception):
    """What the function returned is not one reward per completion."""


def _checked(returned: Any, count: int) -> list[float | None]:
    if isinstance(returned, str | bytes | Mapping) or not hasattr(returned, "__iter__"):
        raise _NoRewards(f"returned {reprlib.repr(returned)}; allowed: a list with a number or None per completion")
    values = list(returned)
    if len(values) != count:
        raise _NoRewards(f"returned {len(values)} rewards, {reprlib.repr(values)}, for {count} completions")
    return [None if value is None else _number(value, place) for place, value in enumerate(values, start=1)]


def _number(value: Any, place: int) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST_REWARD:  # NaN, too
        allowed = f"a number from {-LARGEST_REWARD:g} to {LARGEST_REWARD:g}, or None"
        raise _NoRewards(f"returned {reprlib.repr(value)} for completion {place}; allowed: {allowed}")
    return number


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value


@lru_cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One for all calls of this process: a client that a function keeps belongs to the loop it was made in."""
    return asyncio.new_event_loop()
