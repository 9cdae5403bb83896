"""Find the columns that hold a question's fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpt.data.readers import Record, Source
from hpt.support.errors import DataError

if TYPE_CHECKING:
    from hpt.config.sections.data import ColumnsConfig

KNOWN_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "question"),
    "answer": ("answer", "reward_model.ground_truth", "solution"),
    "demonstration": ("demonstration", "target", "solution"),
    "id": ("id",),
    "grade": ("grade",),
}
"""The columns in which each field is looked for, in this order; dots reach into nested objects.

They cover {prompt, answer}, {problem | question, answer | solution} and OpenR1-Math-46k-8192's (prompt, target,
reward_model.ground_truth). A "solution" is the answer if no other column is, and otherwise the demonstration.
"""

MISSING = object()
"""Stands for the value of a column that a record does not have."""


def find_columns(source: Source, columns: ColumnsConfig, *, need_demonstration: bool, option: str) -> dict[str, str]:
    """The column of each field of `KNOWN_COLUMNS` that any record has.

    columns: the names that the user gave; None for a field that is to be looked for.
    option: how the user names a column, for the error message: "data.columns.{field}=NAME".
    DataError if a column is missing that is needed or was named.
    """
    found: dict[str, str] = {}
    for field, known in KNOWN_COLUMNS.items():
        named = getattr(columns, field)
        candidates = [named] if named else [name for name in known if name not in found.values()]
        column = _first_present(candidates, source)
        if column is not None:
            found[field] = column
            continue
        # One recipe names the columns of training and test data, and test data may have no demonstrations.
        needed = need_demonstration if field == "demonstration" else named or field in ("prompt", "answer")
        if needed:
            raise DataError(
                f"{source.name}: no record has a column for the {field}: looked for {', '.join(candidates)}; "
                f"the records have {', '.join(sorted(source.columns)) or 'no columns'}. "
                f"Name the column by {option.format(field=field)} (dots reach into nested objects)"
            )
    return found


def value_at(record: Record, column: str) -> Any:
    """The value of a column, which may be a dotted path into nested objects; `MISSING` if there is none."""
    if column in record:
        return record[column]
    value: Any = record
    for key in column.split("."):
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def _first_present(candidates: list[str], source: Source) -> str | None:
    for column in candidates:
        if any(value_at(record, column) is not MISSING for _, record in source.records):
            return column
    return None
