"""Questions with their answers and demonstrations, checked on the way in, and the order they are trained in.

Columns are found by the layouts in common use (see `KNOWN_COLUMNS`), or named by the recipe. A source is read
and checked whole, so that one message tells what is wrong with it before any model is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpt.data.readers import Problems, describe, read_records
from hpt.support.errors import DataError

if TYPE_CHECKING:
    from hpt.config.schema import ColumnsConfig

Message = dict[str, str]

# The first of these that any record has is the column; dots reach into nested objects. They cover
# {prompt, answer}, {problem | question, answer | solution} and OpenR1-Math-46k-8192's (prompt, target,
# reward_model.ground_truth). A "solution" is the answer where nothing else is, otherwise the demonstration.
KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "question"),
    "answer": ("answer", "reward_model.ground_truth", "solution"),
    "demonstration": ("demonstration", "target", "solution"),
    "id": ("id",),
    "grade": ("grade",),
}


class Place(NamedTuple):
    """Where a question stands in its file. unit: "line" or "record"; answer: the column of its answer."""

    unit: str
    number: int
    answer: str


@dataclass(frozen=True)
class Question:
    """One training or test question.

    prompt: the question's text, or a chat: `{"role", "content"}` messages, an optional system message and
        then user and assistant in turn, the user last.
    answer: the gold answer, for the verifier.
    demonstration: a worked solution, verbatim, or None.
    grade: a label of difficulty or subject that results are also reported by, or None.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    demonstration: str | None = None
    grade: str | None = None
    place: Place | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def named(self) -> str:
        """For messages about it."""
        return f"{self.place.unit} {self.place.number} (question {self.id})" if self.place else f"question {self.id}"


def load_questions(
    source: str, columns: ColumnsConfig, *, need_demonstration: bool, option: str = "data.columns.{field}=NAME"
) -> list[Question]:
    """Read every question of `source`.

    source: a .jsonl, .json (a list of objects), .csv or .parquet file; a dataset folder; or a dataset of the
        Hugging Face hub as NAME[:CONFIG]@SPLIT. Folders and hub names go through the `datasets` library.
    columns: names of columns, each None to find it among `KNOWN_COLUMNS`.
    need_demonstration: whether a question without a demonstration is an error.
    option: how the user names a column, for the message that one is missing.

    A question without an id gets "#" and its line (JSONL) or record number, from 1.
    Raises DataError naming file, line, field, what came and what is allowed, the first few problems in one
    message; HptError where a library for this kind of source is not installed.
    """
    problems = Problems(source, "line" if Path(source).suffix == ".jsonl" else "record")
    records = list(read_records(source, problems))
    if not records:
        problems.raise_if_any()
        raise DataError(f"{source} holds no questions: it is empty")
    names = _find_columns(source, [record for _, record in records], columns, need_demonstration, option)
    convert = dict(_CONVERT, demonstration=_needed_demonstration) if need_demonstration else _CONVERT

    questions = []
    number_of_id: dict[str, int] = {}
    for number, record in records:
        values = dict.fromkeys(KNOWN_COLUMNS)
        for field, column in names.items():
            try:
                values[field] = convert[field](_get(record, column))
            except ValueError as error:
                problems.add(number, f"field {column!r} {error}")
        place = Place(problems.unit, number, names["answer"])
        question = Question(**values | {"id": values["id"] or f"#{number}", "place": place})
        first = number_of_id.setdefault(question.id, number)
        if first != number:
            column = names.get("id", "id")
            problems.add(number, f"field {column!r} is {question.id!r}, the id of {problems.unit} {first} too")
        questions.append(question)
    problems.raise_if_any()
    return questions


@dataclass(frozen=True)
class QuestionOrder:
    """Which questions each training step sees: a pure function of (seed, step), so resuming changes nothing.

    One shuffle of all questions follows another: each question once per epoch; a batch may straddle epochs.
    """

    n_questions: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.n_questions < 1 or self.batch_size < 1:
            raise ValueError(
                f"need at least one question and one a batch, got {self.n_questions} and {self.batch_size}"
            )

    def batch(self, step: int) -> list[int]:
        """Indices of the questions of training step `step`, counted from 1; `batch_size` of them."""
        if step < 1:
            raise ValueError(f"training steps count from 1, got {step}")
        start = (step - 1) * self.batch_size
        places = (divmod(place, self.n_questions) for place in range(start, start + self.batch_size))
        return [_shuffled(self.n_questions, self.seed, epoch)[offset] for epoch, offset in places]

    def epoch(self, step: int) -> float:
        """Epochs seen when training step `step` is done."""
        return step * self.batch_size / self.n_questions


@lru_cache(maxsize=2)
def _shuffled(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    # Sorted by hash: unlike a library's generator, the same in every version for ever.
    def key(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=16).digest()

    return tuple(sorted(range(n), key=key))


# ---- columns


def _find_columns(
    source: str, records: list[dict[str, Any]], columns: ColumnsConfig, need_demonstration: bool, option: str
) -> dict[str, str]:
    """The column of each field that has one."""
    names: dict[str, str] = {}
    for field, known in KNOWN_COLUMNS.items():
        named = getattr(columns, field)
        candidates = [named] if named else [name for name in known if name not in names.values()]
        found = next((name for name in candidates if any(_has(record, name) for record in records)), None)
        if found is not None:
            names[field] = found
            continue
        needed = field in ("prompt", "answer") or (field == "demonstration" and need_demonstration)
        if needed or (named and field != "demonstration"):
            present = sorted({str(key) for record in records for key in record})
            raise DataError(
                f"{source}: no record has a column for the {field}: looked for {', '.join(candidates)}; "
                f"the records have {', '.join(present) or 'no columns'}. "
                f"Name the column by {option.format(field=field)} (dots reach into nested objects)"
            )
    return names


_MISSING = object()


def _get(record: dict[str, Any], column: str) -> Any:
    if column in record:
        return record[column]
    value: Any = record
    for key in column.split("."):
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _has(record: dict[str, Any], column: str) -> bool:
    return _get(record, column) is not _MISSING


# ---- fields: ValueError says what is wrong, to follow "field 'NAME' "


def _prompt(value: Any) -> str | tuple[Message, ...]:
    if isinstance(value, list):
        messages = _messages(value)
        turns = [message["role"] for message in messages]
        if turns[:1] == ["system"]:
            turns = turns[1:]
        if len(turns) % 2 == 0 or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(turns)):
            raise ValueError(
                f"has messages in the order {_roles(messages)}; "
                "allowed: an optional system message, then user and assistant in turn, the user last"
            )
        for message in messages:
            if message["role"] != "system" and not message["content"].strip():
                raise ValueError(f"has an empty {message['role']} message; a question needs text")
        return messages
    return _text(value, "a string, or a list of {role, content} messages")


def _answer(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    return _text(value, "a string or a finite number")


def _needed_demonstration(value: Any) -> str:
    demonstration = _demonstration(value)
    if demonstration is None:
        raise ValueError(f"{_is(value)}; training on demonstrations needs one for every question")
    return demonstration


def _demonstration(value: Any) -> str | None:
    if value is _MISSING or value is None or value == "" or value == []:
        return None
    if isinstance(value, list):
        messages = _messages(value)
        if [message["role"] for message in messages] != ["assistant"]:
            raise ValueError(
                f"has messages in the order {_roles(messages)}; allowed: one assistant message, or a string"
            )
        value = messages[0]["content"]
    return _text(value, "a string, or a list of one assistant message")


def _label(value: Any) -> str | None:
    if value is _MISSING or value is None or value == "":
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
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
        messages.append({"role": role, "content": _clean(content)})
    return tuple(messages)


def _roles(messages: Iterable[Message]) -> str:
    return ", ".join(message["role"] for message in messages) or "(none)"


def _text(value: Any, allowed: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_is(value)}; allowed: {allowed}")
    if not value.strip():
        raise ValueError(f"is empty ({value!r}); allowed: {allowed}")
    return _clean(value)


def _is(value: Any) -> str:
    return "is missing" if value is _MISSING else f"is {describe(value)}"


_NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def _clean(text: str) -> str:
    bad = _NOT_TEXT.search(text)
    if bad:
        what = "a NUL character" if bad[0] == "\0" else f"half of a surrogate pair ({bad[0]!a})"
        raise ValueError(f"holds {what} at position {bad.start()}; no tokenizer takes it")
    return text


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "prompt": _prompt,
    "answer": _answer,
    "demonstration": _demonstration,
    "id": _label,
    "grade": _label,
}
