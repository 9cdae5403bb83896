"""Find the columns that hold a question's fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from hpt.data.readers import Record, Source
from hpt.support.errors import DataError

if TYPE_CHECKING:
    from hpt.config.sections.data import ColumnsConfig

Demonstrations = Literal["required", "some", "optional"]
"""Which questions must have one. required: all. some: those that lack one are dealt with later. optional: none."""
KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "question"),
    "answer": ("answer", "reward_model.ground_truth", "solution"),
    "demonstration": ("demonstration", "target", "completion", "solution"),
    "messages": ("messages", "conversations", "conversation"),
    "tools": ("tools",),
    "chat_template_kwargs": ("chat_template_kwargs",),
    "id": ("id",),
    "grade": ("grade",),
}
"""The columns in which each field is looked for, in this order; dots reach into nested objects.

They cover {prompt, answer}, {problem | question, answer | solution}, TRL's {prompt, completion}, OpenAI's {messages,
tools}, ShareGPT's {conversations} and OpenR1-Math-46k-8192's (prompt, target, reward_model.ground_truth). A "solution"
is the answer if no other column is, and the demonstration where there is another answer or none is needed.
"""

MISSING = object()
"""Stands for the value of a column that a record does not have."""


class MissingColumn(DataError):
    """No record has a column for a field that is needed or was named."""

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


_INDEX = re.compile(r"-?\d{1,9}")


def find_columns(
    source: Source,
    columns: ColumnsConfig,
    *,
    demonstrations: Demonstrations,
    need_answer: bool,
    option: str,
) -> dict[str, str]:
    """The column of each field of `KNOWN_COLUMNS` that any record has.

    columns: the names that the user gave; None for a field that is to be looked for.
    option: how the user names a column, for the error message: "data.columns.{field}=NAME".

    "messages" holds both prompt and demonstration. Where it is found and not named, prompt and demonstration columns
    are preferred to it if both are there. Either way only one of the two forms is returned.
    MissingColumn if a column is missing that is needed or was named.
    """
    found: dict[str, str] = {}
    fields = list(KNOWN_COLUMNS)
    if demonstrations != "optional" and not need_answer:
        fields.sort(key=lambda field: field != "demonstration")  # it comes first, and may be the solution
    for field in fields:
        column = _first_present(_candidates(field, columns, found), source)
        if column is not None:
            found[field] = column
    form = "messages" if _is_in_messages(found, columns) else "prompt"
    for field in ("prompt", "demonstration") if form == "messages" else ("messages",):
        found.pop(field, None)
    # One recipe names the columns of training and test data, and test data may have no demonstrations.
    optional = ("id", "answer", "tools", "chat_template_kwargs", "grade")
    needed = {form, *(field for field in optional if getattr(columns, field))}
    if demonstrations == "required" and form == "prompt":
        needed.add("demonstration")
    if need_answer:
        needed.add("answer")
    for field in KNOWN_COLUMNS:
        if field in needed and field not in found:
            raise MissingColumn(
                f"{source.name}: no record has a column for the {field}: looked for "
                f"{', '.join(_candidates(field, columns, found))}; "
                f"the records have {', '.join(sorted(source.columns)) or 'no columns'}. "
                f"Name the column by {option.format(field=field)} (dots reach into nested objects)"
                + _advice(field, found, option),
                field,
            )
    return found


def _candidates(field: str, columns: ColumnsConfig, found: dict[str, str]) -> list[str]:
    """The column that the user named for the field, or the known ones that are no other field's."""
    named = getattr(columns, field)
    if named:
        return [named]
    taken = {*found.values(), *columns.model_dump(exclude_none=True).values()}
    return [name for name in KNOWN_COLUMNS[field] if name not in taken]


def _advice(field: str, found: dict[str, str], option: str) -> str:
    """What else may help where a field has no column."""
    if field == "prompt":
        named = option.format(field="messages")
        return f", or by {named} where it is a list of messages: {{role, content}}, or ShareGPT's {{from, value}}"
    if field == "demonstration" and found.get("answer") == "solution":
        both = " ".join(option.format(field=each).replace("NAME", "solution") for each in ("answer", "demonstration"))
        return (
            ". The solution is read as the answer, since answers are needed, too, and no other column is one. If it "
            f"is a worked solution that ends in \\boxed{{...}}, {both} makes it both"
        )
    return ""


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
