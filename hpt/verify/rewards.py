"""Reward functions in TRL's form, called in worker processes on all rollouts of a question at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from hpt.config.sections.rewards import LARGEST_REWARD, VERIFIER
from hpt.data.questions import Question
from hpt.support.errors import ConfigError, RewardError
from hpt.support.named_functions import resolve
from hpt.verify.pool import Outcome, WorkerPool
from hpt.verify.protocol import NotAMessage
from hpt.verify.reward_call import TrainerState, missing_arguments

if TYPE_CHECKING:
    from hpt.config.schema import Config
    from hpt.config.sections.rewards import RewardCallsConfig

logger = logging.getLogger(__name__)

_CALL = "hpt.verify.reward_call:call_reward"
_OF_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns that reward functions do not get, as in TRL."""


OnFault = Callable[[str, Question, int, str], None]
"""Called with the function's name, the question, the number of completions and what the function did wrong."""


class Completion(Protocol):
    """A response to a question: a rollout, or a demonstration."""

    @property
    def text(self) -> str:
        """Without its stop token."""

    @property
    def tokens(self) -> list[int]:
        """With its stop token."""


class Response(NamedTuple):
    """A completion that no engine sampled."""

    text: str
    tokens: list[int]


@dataclass
class GroupRewards:
    """The rewards of one question's completions; a list has one item per completion.

    values: by function; None where it does not apply or failed. failures: by function, the completions it failed on.
    faults: by function, what it did wrong. metrics, extra: what functions logged by `log_metric` and `log_extra`.
    """

    values: dict[str, list[float | None]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def extend(self, others: GroupRewards) -> None:
        """Adds those of further completions of the question."""
        for name, values in others.values.items():
            self.values.setdefault(name, []).extend(values)
        for name, numbers in others.metrics.items():
            self.metrics.setdefault(name, []).extend(numbers)
        for name, column in others.extra.items():
            self.extra.setdefault(name, []).extend(column)
        for name, count in others.failures.items():
            self.failures[name] = self.failures.get(name, 0) + count
        self.faults |= others.faults


def make_reward_functions(config: Config) -> RewardFunctions | None:
    """The functions that a recipe lists in `rewards`; None where it lists none. ConfigError as for the class."""
    functions = {reward.name: reward.function for reward in config.rewards if reward.function != VERIFIER}
    return RewardFunctions(functions, config.reward_calls) if functions else None


def weighted_sum(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The reward of a completion from those of each function; None where none applies."""
    known = [weights[name] * value for name, value in values.items() if value is not None]
    return sum(known) if known else None


class RewardFunctions:
    """Calls the functions in worker processes that are killed where a call exceeds its limits.

    A context manager: the processes start on entry and end on exit.

    functions: "module:function" by name. ConfigError where one cannot be imported.
    """

    def __init__(self, functions: Mapping[str, str], settings: RewardCallsConfig) -> None:
        self.functions = dict(functions)
        self._settings = settings
        self._resolved = {name: resolve(reference, field="rewards") for name, reference in functions.items()}
        self._warned: set[str] = set()
        self._pool = WorkerPool(
            [_CALL, *functions.values()],
            workers=settings.workers,
            timeout=settings.timeout,
            memory_mb=settings.memory_mb,
            field="rewards",
            limits="reward_calls",
        )

    def __enter__(self) -> Self:
        self._pool.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.close()

    def check_columns(self, columns: Mapping[str, Any], source: str) -> None:
        """ConfigError where a function asks for what is neither a column of the data nor one of TRL's arguments."""
        given = {**dict.fromkeys(_OF_TRL), **_columns(columns)}
        for name, function in self._resolved.items():
            if missing := missing_arguments(function, given):
                raise ConfigError(
                    f"rewards: {self.functions[name]!r} asks for {', '.join(map(repr, missing))}, which {source} has "
                    f"no column for; it can have {', '.join(given)}"
                )

    def calling(self, state: TrainerState, *, only: str | None = None, on_fault: OnFault | None = None) -> RewardCalls:
        """A context manager that takes questions with their completions one by one and has them rewarded.

        only: the one function to call; None calls all. on_fault: what to do where one fails; None: as the recipe says.
        """
        names = list(self.functions) if only is None else [only]
        return RewardCalls(self, names, state, on_fault or self._handle)

    def _handle(self, name: str, question: Question, count: int, fault: str) -> None:
        """Raises for what a function did wrong, or notes it, as the recipe says."""
        text = f"rewards: {self.functions[name]!r} {fault}, called on {count} completions of {question.named}"
        if self._settings.on_error == "stop":
            raise RewardError(f"{text}\nTo count such calls as None and go on: reward_calls.on_error=none")
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("%s; counted as None, see reward/%s/failures", text, name)


class _Group(NamedTuple):
    question: Question
    size: int
    calls: dict[str, Future[Outcome]]  # by function


class RewardCalls:
    """Questions whose completions are rewarded while more of them come. Leaving the context drops what is not done."""

    def __init__(
        self, functions: RewardFunctions, names: Sequence[str], state: TrainerState, on_fault: OnFault
    ) -> None:
        self._functions = functions
        self._on_fault = on_fault
        self._names = names
        self._state = state
        self._groups: dict[Hashable, _Group] = {}

    def __enter__(self) -> Self:
        self._tasks = self._functions._pool.tasks()
        return self

    def __exit__(self, *error: object) -> None:
        self._tasks.cancel()

    def add(self, key: Hashable, question: Question, completions: Sequence[Completion]) -> None:
        """Starts the calls on all completions of a question. `key` names it among the results."""
        arguments = {**_arguments(question, completions), "trainer_state": self._state}
        references = self._functions.functions
        calls = {name: self._tasks.submit(_CALL, references[name], arguments) for name in self._names}
        self._groups[key] = _Group(question, len(completions), calls)

    def results(self) -> dict[Hashable, GroupRewards]:
        """Waits for all calls. RewardError, naming function and question, where one failed and is to stop the run."""
        return {key: self._result(group) for key, group in self._groups.items()}

    def _result(self, group: _Group) -> GroupRewards:
        rewards = GroupRewards()
        for name, call in group.calls.items():
            outcome = call.result()
            reply: dict[str, Any] = outcome.value if outcome.kind == "done" else {"fault": _fault(outcome)}
            if not _is_reply(reply, group.size):
                raise NotAMessage(json.dumps(reply).encode())
            rewards.values[name] = reply.get("rewards", [None] * group.size)
            rewards.failures[name] = 0
            if "fault" in reply:
                rewards.failures[name] = group.size
                rewards.faults[name] = reply["fault"]
                self._on_fault(name, group.question, group.size, reply["fault"])
                continue
            for metric, values in reply["metrics"].items():
                rewards.metrics.setdefault(metric, []).extend(values)
            rewards.extra |= reply["extra"]
        return rewards


def _is_reply(value: Any, count: int) -> bool:
    """Whether it has the form of what `call_reward` returns: a function in the worker may have sent it instead."""
    if not isinstance(value, dict):
        return False
    if value.keys() == {"fault"}:
        return isinstance(value["fault"], str)
    return (
        value.keys() == {"rewards", "metrics", "extra"}
        and isinstance(value["rewards"], list)
        and len(value["rewards"]) == count
        and all(reward is None or _is_reward(reward) for reward in value["rewards"])
        and _are_lists(value["metrics"], float)
        and _are_lists(value["extra"], str | int | float | None)
    )


def _is_reward(value: Any) -> bool:
    return isinstance(value, float) and abs(value) <= LARGEST_REWARD


def _are_lists(columns: Any, of: Any) -> bool:
    return isinstance(columns, dict) and all(
        isinstance(column, list) and all(isinstance(value, of) for value in column) for column in columns.values()
    )


def _fault(outcome: Outcome) -> str:
    if outcome.kind == "exceeded":
        return f"exceeded {outcome.value} (reward_calls has the limits)"
    if outcome.kind == "died":
        return f"has no result: {outcome.value}"
    return f"cannot be given its arguments: {outcome.value}"


def _arguments(question: Question, completions: Sequence[Completion]) -> dict[str, Any]:
    """What TRL hands to a reward function: texts, or lists of messages where the data's prompt is one."""
    count = len(completions)
    texts: list[Any] = [completion.text for completion in completions]
    prompt: Any = question.prompt
    if not isinstance(prompt, str):
        prompt = list(prompt)
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    return {
        **{name: [value] * count for name, value in _columns(question.columns).items()},
        "prompts": [prompt] * count,
        "completions": texts,
        "completion_ids": [list(completion.tokens) for completion in completions],
    }


def _columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if name not in _NOT_COLUMNS}
