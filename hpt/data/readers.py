"""Read the records of .jsonl, .json, .csv and .parquet files and of Hugging Face datasets."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from hpt.data.problems import Problems, describe
from hpt.support.errors import DataError
from hpt.support.hub import find_hub, missing_local_path

if TYPE_CHECKING:
    import datasets

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A file or dataset, read whole.

    name: its path or hub name.
    records: each with its number, from 1 (in a .jsonl file: its line).
    problems: what is wrong with the source; a record that could not be read is only here.
    """

    name: str
    records: list[tuple[int, Record]]
    problems: Problems

    @cached_property
    def columns(self) -> set[str]:
        """The columns that any record has."""
        return {key for _, record in self.records for key in record}

    def fingerprint(self) -> str:
        """Of the content of all records, in their order."""
        hashed = hashlib.sha256()
        for number_and_record in self.records:
            hashed.update(repr(number_and_record).encode(errors="backslashreplace"))
        return hashed.hexdigest()


def read_source(name: str) -> Source:
    """Read a file or dataset whole; errors as in `read_records`."""
    problems = Problems(name, "line" if Path(name).suffix == ".jsonl" else "record")
    return Source(name, list(read_records(name, problems)), problems)


def read_records(source: str, problems: Problems) -> Iterator[tuple[int, Record]]:
    """Yield the objects that `source` holds, each with its number from 1 (the line of a .jsonl file).

    A record that cannot be read is added to `problems`. A source that cannot be read at all raises DataError.
    """
    path = Path(source)
    if path.is_file():
        readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
        if path.suffix not in readers:
            raise DataError(f"{source}: a data file ends in {', '.join(FILE_KINDS)}, not in {path.suffix!r}")
        records = readers[path.suffix](path, problems)
    elif path.suffix in FILE_KINDS:
        raise DataError(f"{source}: no such file (looked in {Path.cwd()})")
    else:
        records = enumerate(_read_dataset(source), start=1)
    for number, record in records:
        if isinstance(record, dict):
            yield number, record
        else:
            problems.add(number, f'is {describe(record)}; allowed: an object such as {{"prompt": ..., "answer": ...}}')


def _read_jsonl(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = _parse_json(line.rstrip())
            except ValueError as error:
                problems.add(number, str(error))
            else:
                yield number, record


def _read_json(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    text = path.read_bytes()
    try:
        value = _parse_json(text) if text.strip() else []
    except ValueError as error:
        raise DataError(f"{path} {error}") from None
    if not isinstance(value, list):
        raise DataError(f"{path} is one {type(value).__name__}: {describe(value)}; allowed: a list of objects")
    yield from enumerate(value, start=1)


def _parse_json(raw: bytes) -> Any:
    """The value; ValueError says what is wrong, and where within `raw`."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text: byte 0x{raw[error.start]:02x} at byte {error.start + 1}") from None
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        near = text[max(0, error.pos - 20) : error.pos + 20]
        raise ValueError(f"is broken JSON at {line}column {error.colno}: {error.msg}, near {near!r}") from None
    except (ValueError, RecursionError) as error:  # a number with too many digits, or nesting that is too deep
        raise ValueError(f"is JSON that cannot be read: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    """An object of JSON. Python itself would keep the last of several values of a key."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return record


def _read_csv(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """The first row names the columns; every value is text.

    Not read by `datasets`, whose CSV reader turns 007 into 7 and NA into null, fills short rows with null, and shifts
    the values of long rows into the wrong columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start + 1}") from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: its first row names the column {name!r} {names.count(name)} times")
    for number, row in enumerate(rows, start=1):
        # DictReader puts surplus values under the key None, and None for missing values.
        if None in row:
            problems.add(number, "has more fields than the first row has names")
        elif None in row.values():
            problems.add(number, "has fewer fields than the first row has names")
        else:
            yield number, row


def _read_parquet(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    # Dataset.from_parquet treats the path as a glob pattern, fails on a file without rows, and writes to the user's
    # cache. Dataset decodes the columns that `datasets` itself has encoded, such as JSON.
    import datasets
    import pyarrow.parquet

    try:
        rows = datasets.Dataset(pyarrow.parquet.read_table(path)).to_list()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    yield from enumerate(rows, start=1)


def _read_dataset(source: str) -> list[Any]:
    """The rows of a dataset folder, or of a dataset of the hub; either may name its split after an @."""
    name, split = (source, None) if Path(source).is_dir() else _split_off(source, "@")
    folder = Path(name).expanduser()
    if not folder.is_dir() and (problem := missing_local_path(name.partition(":")[0])):
        raise DataError(f"{source}: {problem}")
    try:
        dataset = _load_folder(folder) if folder.is_dir() else _load_from_hub(name, split)
    except Exception as error:  # the hub, the network and each dataset builder have their own errors
        raise DataError(
            f"{source}: the datasets library cannot load it: {type(error).__name__}: {error}\n"
            f"allowed: a {', '.join(FILE_KINDS)} file, a dataset folder, or NAME[:CONFIG]@SPLIT of the hub"
        ) from error
    if not isinstance(dataset, dict):
        return dataset.to_list()
    if split is None and len(dataset) == 1:
        (only_split,) = dataset.values()
        return only_split.to_list()
    if split not in dataset:
        raise DataError(f"{source}: name one of its splits, {', '.join(dataset)}, as {name}@SPLIT; got {split!r}")
    return dataset[split].to_list()


def _load_folder(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    """A dataset that `save_to_disk` wrote, or a folder of data files."""
    import datasets

    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return datasets.load_from_disk(str(folder))
    # The files are read again each time, so the user's cache need not keep a copy.
    with TemporaryDirectory() as cache:
        return datasets.load_dataset(str(folder), cache_dir=cache, keep_in_memory=True)


def _load_from_hub(name: str, split: str | None) -> datasets.Dataset | datasets.DatasetDict:
    import datasets

    find_hub()
    name, config = _split_off(name, ":")
    return datasets.load_dataset(name, config, split=split)


def _split_off(text: str, separator: str) -> tuple[str, str | None]:
    """`text` before and after its last `separator`; None where it has none."""
    head, found, tail = text.rpartition(separator)
    return (head, tail) if found else (text, None)
