"""Find the columns that hold a question's fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hpt.data.readers import Record, Source
from hpt.support.errors import DataError

if TYPE_CHECKING:
    from hpt.config.sections.data import ColumnsConfig

KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "question"),
    "answer": ("answer", "reward_model.ground_truth", "solution"),
    "demonstration": ("demonstration", "target", "completion", "solution"),
    "messages": ("messages", "conversations", "conversation"),
    "tools": ("tools",),
    "id": ("id",),
    "grade": ("grade",),
}
"""The columns in which each field is looked for, in this order; dots reach into nested objects.

They cover {prompt, answer}, {problem | question, answer | solution}, TRL's {prompt, completion}, OpenAI's {messages,
tools}, ShareGPT's {conversations} and OpenR1-Math-46k-8192's (prompt, target, reward_model.ground_truth). A "solution" is the answer if no other
column is, and otherwise the demonstration.
"""

MISSING = object()
"""Stands for the value of a column that a record does not have."""

_INDEX = re.compile(r"-?\d{1,9}")


def find_columns(
    source: Source, columns: ColumnsConfig, *, need_demonstration: bool, need_answer: bool, option: str
) -> dict[str, str]:
    """The column of each field of `KNOWN_COLUMNS` that any record has.

    columns: the names that the user gave; None for a field that is to be looked for.
    option: how the user names a column, for the error message: "data.columns.{field}=NAME".

    "messages" holds both prompt and demonstration. Where it is found and not named, prompt and demonstration columns
    are preferred to it if both are there. Either way only one of the two forms is returned.
    DataError if a column is missing that is needed or was named.
    """
    found: dict[str, str] = {}
    for field, known in KNOWN_COLUMNS.items():
        named = getattr(columns, field)
        column = _first_present([named] if named else [name for name in known if name not in found.values()], source)
        if column is not None:
            found[field] = column
    form = "messages" if _is_in_messages(found, columns) else "prompt"
    for field in ("prompt", "demonstration") if form == "messages" else ("messages",):
        found.pop(field, None)
    # One recipe names the columns of training and test data, and test data may have no demonstrations.
    needed = {form, *(field for field in ("id", "answer", "tools", "grade") if getattr(columns, field))}
    if need_demonstration and form == "prompt":
        needed.add("demonstration")
    if need_answer:
        needed.add("answer")
    for field, known in KNOWN_COLUMNS.items():
        if field in needed and field not in found:
            named = getattr(columns, field)
            candidates = [named] if named else [name for name in known if name not in found.values()]
            raise DataError(
                f"{source.name}: no record has a column for the {field}: looked for {', '.join(candidates)}; "
                f"the records have {', '.join(sorted(source.columns)) or 'no columns'}. "
                f"Name the column by {option.format(field=field)} (dots reach into nested objects)"
            )
    return found


def _is_in_messages(found: dict[str, str], columns: ColumnsConfig) -> bool:
    """Whether prompt and demonstration are read from a column of whole conversations."""
    if columns.messages:
        return True
    if "prompt" not in found:
        return "messages" in found
    return found.get("messages") == "messages" and not ("demonstration" in found or columns.prompt)


def unread_columns(source: Source, column_of: dict[str, str]) -> list[str]:
    """The columns of the records in which no field was found, in the order of their names."""
    read = {column if column in source.columns else column.split(".")[0] for column in column_of.values()}
    return sorted(source.columns - read)


def value_at(record: Record, column: str) -> Any:
    """The value of a column; `MISSING` if there is none.

    A column may be a dotted path into nested objects and lists: "reward_model.ground_truth", "messages.0.content",
    "choices.-1.text" (a number counts from 0, a negative one from the end).
    """
    if column in record:
        return record[column]
    value: Any = record
    for key in column.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and _INDEX.fullmatch(key) and -len(value) <= int(key) < len(value):
            value = value[int(key)]
        else:
            return MISSING
    return value


def _first_present(candidates: list[str], source: Source) -> str | None:
    for column in candidates:
        if any(value_at(record, column) is not MISSING for _, record in source.records):
            return column
    return None
