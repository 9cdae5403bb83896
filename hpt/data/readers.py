"""Records of .jsonl, .json, .csv, .parquet files and Hugging Face datasets, and one message for what is wrong."""

from __future__ import annotations

import csv
import json
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hpt.support.errors import DataError, HptError
from hpt.support.hub import find_hub

FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")
PROBLEMS_SHOWN = 5

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60
_repr.maxdict = _repr.maxlist = _repr.maxlevel = 3


def describe(value: Any) -> str:
    """A value of a data file, short enough for a message."""
    return "null" if value is None else _repr.repr(value)


def first_few(lines: list[str]) -> list[str]:
    """The first lines and a count of the others."""
    more = len(lines) - PROBLEMS_SHOWN
    return [*lines[:PROBLEMS_SHOWN], f"and {more} more"] if more > 0 else lines


class Problems:
    """What is wrong with a file, gathered into one message."""

    def __init__(self, source: str, unit: str) -> None:
        self.source = source
        self.unit = unit
        self.found: list[tuple[int, str]] = []

    def add(self, number: int, text: str) -> None:
        self.found.append((number, text))

    def raise_if_any(self) -> None:
        if not self.found:
            return
        self.found.sort(key=lambda problem: problem[0])
        if len(self.found) == 1:
            number, text = self.found[0]
            raise DataError(f"{self.source}, {self.unit} {number}: {text}")
        lines = first_few([f"{self.unit} {number}: {text}" for number, text in self.found])
        raise DataError("\n  ".join([f"{self.source} has {len(self.found)} problems:", *lines]))


def read_records(source: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects that `source` holds, each with its number from 1 (the line of a .jsonl file).

    What is wrong with one record is added to `problems`; a source that cannot be read at all raises
    DataError, a library that is missing for it HptError.
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


def _read_csv(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    """The first row names the columns; a value is a text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start + 1}") from None
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from None
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            problems.add(number, f"has {'more' if None in row else 'fewer'} fields than the first row has names")
        else:
            yield number, row


def _parse_json(raw: bytes) -> Any:
    """The value; ValueError says what is wrong, and where within `raw`."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text: byte 0x{raw[error.start]:02x} at byte {error.start + 1}") from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        near = text[max(0, error.pos - 20) : error.pos + 20]
        raise ValueError(f"is broken JSON at {line}column {error.colno}: {error.msg}, near {near!r}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, too deep a nesting
        raise ValueError(f"is JSON that cannot be read: {error}") from None


def _read_parquet(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise HptError(f"{path}: reading parquet files needs pyarrow: pip install 'hpt[eval]'") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    yield from enumerate(rows, start=1)


def _read_dataset(source: str) -> Iterable[Any]:
    name, split = (source, None) if Path(source).is_dir() else _split_off(source, "@")
    folder = Path(name).expanduser()
    if name.startswith(("/", "./", "../", "~")) and not folder.is_dir():
        raise DataError(f"{source}: no such file or folder")
    try:
        import datasets
    except ImportError:
        raise HptError(f"{source}: reading datasets needs the datasets library: pip install 'hpt[eval]'") from None
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            dataset = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            dataset = datasets.load_dataset(str(folder))
        else:
            find_hub()
            name, config = _split_off(name, ":")
            dataset = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # whatever the hub, the network or a builder raises
        raise DataError(
            f"{source}: the datasets library cannot load it: {type(error).__name__}: {error}\n"
            f"allowed: a {', '.join(FILE_KINDS)} file, a dataset folder, or NAME[:CONFIG]@SPLIT of the hub"
        ) from error
    if not isinstance(dataset, dict):
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        raise DataError(f"{source}: name one of its splits, {', '.join(dataset)}, as {name}@SPLIT; got {split!r}")
    return dataset[split]


def _split_off(text: str, separator: str) -> tuple[str, str | None]:
    head, found, tail = text.rpartition(separator)
    return (head, tail) if found else (text, None)
