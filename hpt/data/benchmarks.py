"""The paper's test sets by name: where they are found and how they are scored."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hpt.config.sections.data import ColumnsConfig
from hpt.data.columns import KNOWN_COLUMNS
from hpt.data.layouts import LAYOUTS, Scoring, find_layout
from hpt.data.questions import Question, parse_questions
from hpt.data.readers import FILE_KINDS, Source, read_source
from hpt.support.errors import DataError, HptError

DATA_DIR = "HPT_DATA_DIR"
"""The environment variable that names the folder of local files."""

MAX_TOKENS = 8192
"""Tokens per response, as in the paper."""

COLUMN_OPTION = "--columns {field}=NAME"
"""How the command line names a column."""

_TEST_FILES = ("test", "test-00000-of-00001")
"""Names of the file in a benchmark's own folder; the longer one is the hub's."""


@dataclass(frozen=True)
class Benchmark:
    """hub: its dataset, NAME[:CONFIG]@SPLIT. n: responses per question in the literature (avg@32 for the small sets,
    pass@1 elsewhere).
    """

    name: str
    hub: str
    n: int = 1
    other_names: tuple[str, ...] = ()
    verifier: Scoring = "math"

    @property
    def keys(self) -> set[str]:
        """Its names, without case and punctuation."""
        return {_key(name) for name in (self.name, *self.other_names)}


BENCHMARKS = (
    Benchmark("AIME24", "math-ai/aime24@test", n=32, other_names=("AIME2024",)),
    Benchmark("AIME25", "math-ai/aime25@test", n=32, other_names=("AIME2025",)),
    Benchmark("AMC", "math-ai/amc23@test", n=32, other_names=("AMC23",)),
    Benchmark("MATH-500", "HuggingFaceH4/MATH-500@test"),
    Benchmark("Minerva", "math-ai/minervamath@test", other_names=("MinervaMath",)),
    Benchmark("OlympiadBench", "Hothan/OlympiadBench:OE_TO_maths_en_COMP@train", other_names=("Olympiad",)),
    Benchmark("GPQA-Diamond", "Idavidrein/gpqa:gpqa_diamond@train", other_names=("GPQA",), verifier="choice"),
    Benchmark(
        "ARC-c",
        "allenai/ai2_arc:ARC-Challenge@test",
        other_names=("ARC-Challenge", "ARC-Challenge-Test"),
        verifier="choice",
    ),
)


def find_benchmark(name: str) -> Benchmark | None:
    """The benchmark of this name, in any case and punctuation."""
    return next((benchmark for benchmark in BENCHMARKS if _key(name) in benchmark.keys), None)


def unknown_benchmark(name: str) -> HptError:
    """The error for a name that is none; it suggests the nearest names and lists all."""
    by_key = {key: benchmark.name for benchmark in BENCHMARKS for key in benchmark.keys}
    near = dict.fromkeys(by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=2, cutoff=0.5))
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    return HptError(
        f"--data {name}: no such file, and no benchmark of that name.{guess} Allowed: a {', '.join(FILE_KINDS)} file, "
        f"NAME[:CONFIG]@SPLIT of the Hugging Face hub, or one of {', '.join(each.name for each in BENCHMARKS)}"
    )


def local_file(benchmark: Benchmark, folder: Path) -> Path | None:
    """The benchmark's file in `folder`: NAME/test.json, NAME/NAME.json or NAME.json, or with another of FILE_KINDS.

    NAME is any of its names, in any case and punctuation.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise HptError(f"{folder}, the folder of benchmark files, cannot be read: {error.strerror}") from None
    for entry in entries:
        paths = [entry]
        allowed_names: tuple[str, ...] = ()
        if entry.is_dir() and _key(entry.name) in benchmark.keys:
            paths = sorted(entry.iterdir())
            allowed_names = _TEST_FILES
        for path in paths:
            named = path.stem in allowed_names or _key(path.stem) in benchmark.keys
            if named and path.suffix in FILE_KINDS and path.is_file():
                return path
    return None


def load_benchmark(
    benchmark: Benchmark, folder: Path | None, columns: ColumnsConfig, *, seed: int
) -> tuple[str, list[Question]]:
    """Where the benchmark's questions come from, and the questions.

    folder: of local files; None means the one that $HPT_DATA_DIR names. Without a local file the Hugging Face hub is
        asked.
    columns: as in `parse_questions`, for files that are in none of LAYOUTS.
    seed: decides the order of the choices where a layout lists right and wrong answers apart (GPQA).
    DataError naming the field if a local file has no known layout; HptError if there is no local file and the hub
    cannot be used.
    """
    if folder is None and os.environ.get(DATA_DIR):
        folder = Path(os.environ[DATA_DIR])
    path = local_file(benchmark, folder) if folder else None
    if path:
        return str(path), _read(benchmark, str(path), columns, seed)
    try:
        return benchmark.hub, _read(benchmark, benchmark.hub, columns, seed)
    except HptError as error:
        names = ", ".join((benchmark.name, *benchmark.other_names))
        where = f"in {folder}" if folder else f"in no folder: name one by --data-dir or ${DATA_DIR}"
        raise HptError(
            f"{benchmark.name}: there is no local file, and the hub cannot be used.\n"
            f"Looked for {names} as NAME/test, NAME/NAME or NAME ({', '.join(FILE_KINDS)}) {where}.\n"
            f"Hub: {error}"
        ) from error


def load_file(name: str, columns: ColumnsConfig, *, seed: int) -> tuple[list[Question], Scoring | None]:
    """The questions of a file or hub dataset, and how they are scored if it is in one of LAYOUTS, else None.

    columns, seed and errors as in `load_benchmark`. A file with a separate column of answers is read by
    that column.
    """
    source = read_source(name)
    layout = find_layout(source)
    if layout and columns.answer is None and "answer" not in source.columns:
        return layout.questions(source, seed), layout.scoring
    return parse_questions(source, columns, demonstrations="optional", option=COLUMN_OPTION), None


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _read(benchmark: Benchmark, name: str, columns: ColumnsConfig, seed: int) -> list[Question]:
    source = read_source(name)
    layout = find_layout(source)
    if layout:
        return layout.questions(source, seed)
    _check_fields(benchmark, source, columns)
    # MATH-500's own names, where the file has them and the user names no others.
    own_names = {"id": "unique_id", "grade": "level"}
    found = {field: column for field, column in own_names.items() if column in source.columns}
    settings = found | columns.model_dump(exclude_none=True)
    return parse_questions(source, ColumnsConfig(**settings), demonstrations="optional", option=COLUMN_OPTION)


def _check_fields(benchmark: Benchmark, source: Source, columns: ColumnsConfig) -> None:
    """DataError if a source in none of LAYOUTS has no column for the prompt or the answer."""
    if not source.columns:
        return  # parse_questions says that the source is empty
    for field in ("prompt", "answer"):
        known = KNOWN_COLUMNS[field]
        if getattr(columns, field) or any(column.split(".")[0] in source.columns for column in known):
            continue
        others = "; ".join(f"{layout.name}'s {layout.fields}" for layout in LAYOUTS)
        raise DataError(
            f"{source.name} has no layout of {benchmark.name}: no record has a field for the {field}. "
            f"Looked for {', '.join(known)}; else {others}. "
            f"The records have {', '.join(sorted(source.columns))}. "
            f"Name the field by {COLUMN_OPTION.format(field=field)}"
        )
