"""Writes records that were given as objects."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpt.support.errors import DataError
from hpt.support.files import make_folder, write_file_atomically


def write_records(records: Iterable[Any], path: Path) -> None:
    """Writes dicts, or the rows of a datasets.Dataset, as JSON lines. DataError where one is not JSON."""
    lines = []
    for number, record in enumerate(records, start=1):
        try:
            lines.append(json.dumps(dict(record)) + "\n")
        except (TypeError, ValueError) as error:
            raise DataError(f"data, record {number}: is not JSON: {error}") from None
    make_folder(path.parent)
    write_file_atomically(path, "".join(lines).encode())
