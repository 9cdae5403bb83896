"""Write records that are Python objects as a file that a recipe can name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpt.data.problems import describe
from hpt.support.errors import DataError
from hpt.support.files import make_folder, write_file_atomically


def write_records(records: Iterable[Any], path: Path) -> None:
    """Write records as JSONL, one object a line; replaces the file `path`.

    records: a list of dicts, a datasets.Dataset or a pandas.DataFrame. Arrays, tensors and NumPy scalars become lists
        and numbers.
    DataError where there is no record, a record is no dict, or a value is not JSON, such as an image or a date; it
    names record (from 1), column and value.
    """
    if isinstance(records, str | Mapping):  # a DatasetDict is a mapping, too
        splits = f"one of {', '.join(map(str, records))}" if isinstance(records, Mapping) else "not a text"
        raise DataError(f"the data must be a list of dicts or a datasets.Dataset, {splits}")
    if hasattr(records, "to_dict") and hasattr(records, "itertuples"):  # a pandas.DataFrame
        records = records.to_dict("records")
    if not isinstance(records, Iterable):
        raise DataError(f"the data is {describe(records)}; allowed: a list of dicts, a datasets.Dataset or a DataFrame")
    lines = []
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            raise DataError(f"record {number} of the data is {describe(record)}; allowed: a dict")
        try:
            lines.append(json.dumps(dict(record), default=_plain) + "\n")
        except (TypeError, ValueError):
            raise DataError(f"record {number} of the data: {_wrong_column(record)}") from None
    if not lines:
        raise DataError("the data holds no records")
    make_folder(path.parent)
    write_file_atomically(path, "".join(lines).encode())


def _plain(value: Any) -> Any:
    """A value of NumPy or torch as Python's own; TypeError for any other."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError


def _wrong_column(record: Mapping[str, Any]) -> str:
    for column, value in record.items():
        try:
            json.dumps({column: value}, default=_plain)
        except (TypeError, ValueError):
            kind = type(value).__name__
            return (
                f"column {column!r} holds {describe(value)} ({kind}), which JSON cannot; allowed: text, numbers, true, "
                "false, null, and lists and dicts of them. Convert the column, or remove it"
            )
    return "its columns must have names that are text"
