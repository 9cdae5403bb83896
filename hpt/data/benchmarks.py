"""The paper's test sets by name: where they are found, how their published files are read, how they are scored."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from hpt.config.schema import ColumnsConfig
from hpt.data.questions import KNOWN_COLUMNS, Question, load_questions
from hpt.data.readers import FILE_KINDS, Problems, describe, read_records
from hpt.support.errors import DataError, HptError

DATA_DIR = "HPT_DATA_DIR"
"""The environment variable that names the folder of local files."""

MAX_TOKENS = 8192
"""Tokens of a response, as in the paper."""

COLUMNS = "--columns {field}=NAME"
"""How a column is named on the command line."""

INSTRUCTION = "Put the letter of the right choice in \\boxed{}."

Scoring: TypeAlias = Literal["math", "choice"]


@dataclass(frozen=True)
class Benchmark:
    """n: responses a question in the literature (avg@32 for the small sets, pass@1 elsewhere)."""

    name: str
    hub: str
    n: int = 1
    other_names: tuple[str, ...] = ()
    verifier: Scoring = "math"

    @property
    def keys(self) -> set[str]:
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
    """By name, whatever its case and punctuation."""
    return next((benchmark for benchmark in BENCHMARKS if _key(name) in benchmark.keys), None)


def unknown_benchmark(name: str) -> HptError:
    """Names the nearest ones, and all."""
    by_key = {key: benchmark.name for benchmark in BENCHMARKS for key in benchmark.keys}
    near = dict.fromkeys(by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=2, cutoff=0.5))
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    return HptError(
        f"--data {name}: no such file, and no benchmark of that name.{guess} Allowed: a {', '.join(FILE_KINDS)} file, "
        f"NAME[:CONFIG]@SPLIT of the Hugging Face hub, or one of {', '.join(each.name for each in BENCHMARKS)}"
    )


def local_file(benchmark: Benchmark, folder: Path) -> Path | None:
    """NAME/test.json, NAME/NAME.json or NAME.json in `folder`, or another of FILE_KINDS.

    The name in any case and punctuation; test may have the hub's suffix of an only part.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise HptError(f"{folder}, the folder of benchmark files, cannot be read: {error.strerror}") from None
    for entry in entries:
        inside = _key(entry.name) in benchmark.keys and entry.is_dir()
        for path in sorted(entry.iterdir()) if inside else [entry]:
            named = _key(path.stem) in benchmark.keys or (inside and path.stem in ("test", "test-00000-of-00001"))
            if named and path.suffix in FILE_KINDS and path.is_file():
                return path
    return None


def load_benchmark(
    benchmark: Benchmark, folder: Path | None, columns: ColumnsConfig, *, seed: int
) -> tuple[str, list[Question]]:
    """Where its questions come from, and the questions.

    folder: of local files, else the one that $HPT_DATA_DIR names; without a local file the Hugging Face hub is asked.
    columns: as in `load_questions`, for files of the layout {prompt, answer}.
    seed: decides the order of the choices where a layout lists right and wrong answers apart (GPQA).
    DataError naming the field where a file has another layout; HptError where no questions can be had.
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
        where = f"in {folder}" if folder else f"nowhere: name their folder by --data-dir or ${DATA_DIR}"
        raise HptError(
            f"{benchmark.name}: there is no local file, and the hub cannot help.\n"
            f"Looked for {names} as NAME/test, NAME/NAME or NAME ({', '.join(FILE_KINDS)}) {where}.\n"
            f"Hub: {error}"
        ) from error


def load_file(source: str, columns: ColumnsConfig, *, seed: int) -> tuple[list[Question], Scoring | None]:
    """The questions of a file (or hub dataset) in a benchmark's own layout, and how they are scored; or in any layout
    that `load_questions` reads, and None. columns, seed and errors as in `load_benchmark`.
    """
    if columns.answer is None:
        records, problems = _records(source)
        present = _present(records)
        layout = _layout(present)
        if layout and "answer" not in present:
            return _convert(layout, records, problems, seed), layout.scoring
    return load_questions(source, columns, need_demonstration=False, option=COLUMNS), None


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


# ---- layouts


def _read(benchmark: Benchmark, source: str, columns: ColumnsConfig, seed: int) -> list[Question]:
    records, problems = _records(source)
    present = _present(records)
    layout = _layout(present)
    if layout is None:
        return _read_plain(benchmark, source, columns, present)
    return _convert(layout, records, problems, seed)


def _records(source: str) -> tuple[list[tuple[int, dict[str, Any]]], Problems]:
    problems = Problems(source, "line" if source.endswith(".jsonl") else "record")
    return list(read_records(source, problems)), problems


def _present(records: Iterable[tuple[int, dict[str, Any]]]) -> set[str]:
    return {key for _, record in records for key in record}


def _layout(present: set[str]) -> _Layout | None:
    return next((layout for layout in _LAYOUTS if present & set(layout.marks)), None)


def _convert(
    layout: _Layout, records: Iterable[tuple[int, dict[str, Any]]], problems: Problems, seed: int
) -> list[Question]:
    questions = []
    numbers: dict[str, int] = {}
    for number, record in records:
        try:
            question = layout.convert(record, number, seed)
        except ValueError as error:
            problems.add(number, f"{error}. The layout of {layout.name} has {layout.fields}")
            continue
        first = numbers.setdefault(question.id, number)
        if first != number:
            problems.add(number, f"its id is {question.id!r}, that of {problems.unit} {first} too")
        questions.append(question)
    problems.raise_if_any()
    return questions


def _read_plain(benchmark: Benchmark, source: str, columns: ColumnsConfig, present: set[str]) -> list[Question]:
    for field in ("prompt", "answer"):
        known = KNOWN_COLUMNS[field]
        if present and not getattr(columns, field) and not any(column.split(".")[0] in present for column in known):
            others = "; ".join(f"{layout.name}'s {layout.fields}" for layout in _LAYOUTS)
            raise DataError(
                f"{source} has no layout of {benchmark.name}: no record has a field for the {field}. "
                f"Looked for {', '.join(known)}; else {others}. The records have {', '.join(sorted(present))}. "
                f"Name the field by {COLUMNS.format(field=field)}"
            )
    # MATH-500's own names, where the file has them and no others are asked for.
    found = {field: name for field, name in (("id", "unique_id"), ("grade", "level")) if name in present}
    settings = found | columns.model_dump(exclude_none=True)
    return load_questions(source, ColumnsConfig(**settings), need_demonstration=False, option=COLUMNS)


def _read_gpqa(record: dict[str, Any], number: int, seed: int) -> Question:
    prompt = _text(record, "Question")
    answers = [_text(record, name) for name in ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3)))]
    # Sorted by hash: the order depends on the seed and the question, not on its place in the file or a library.
    order = sorted(range(4), key=lambda i: hashlib.blake2b(f"{seed}/{prompt}/{i}".encode()).digest())
    prompt, letter = _with_choices(prompt, [answers[i] for i in order], order.index(0))
    return Question(_id(record, "Record ID", number), prompt, letter, grade=record.get("High-level domain") or None)


def _read_arc(record: dict[str, Any], number: int, seed: int) -> Question:
    # The hub has {question, choices {text, label}}, the authors' files {question {stem, choices [{text, label}]}}.
    inner = record.get("question")
    holder, prompt = (inner, _text(inner, "stem")) if isinstance(inner, dict) else (record, _text(record, "question"))
    choices = holder.get("choices")
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        choices = {name: [choice.get(name) for choice in choices] for name in ("text", "label")}
    if not isinstance(choices, dict):
        raise ValueError(f"field 'choices' {_is(choices)}; allowed: an object with text and label")
    texts, labels = choices.get("text"), choices.get("label")
    if not (isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels) >= 2):
        raise ValueError(
            f"field 'choices' has text {describe(texts)} and label {describe(labels)}; "
            "allowed: two lists of one length, at least 2"
        )
    key = _text(record, "answerKey")
    if key not in labels:
        raise ValueError(f"field 'answerKey' is {key!r}; allowed: one of its labels, {', '.join(map(str, labels))}")
    prompt, letter = _with_choices(
        prompt, [_text({"choices.text": text}, "choices.text") for text in texts], labels.index(key)
    )
    return Question(_id(record, "id", number), prompt, letter)


def _read_olympiad(record: dict[str, Any], number: int, seed: int) -> Question:
    answers = record.get("final_answer")
    if not (isinstance(answers, list) and answers and all(isinstance(each, str) and each.strip() for each in answers)):
        raise ValueError(f"field 'final_answer' {_is(answers)}; allowed: a list of at least one string")
    subfield = record.get("subfield")
    return Question(_id(record, "id", number), _text(record, "question"), ", ".join(answers), grade=subfield or None)


@dataclass(frozen=True)
class _Layout:
    name: str
    fields: str
    marks: tuple[str, ...]
    """Any of these fields tells the layout."""
    convert: Callable[[dict[str, Any], int, int], Question]
    scoring: Scoring


_LAYOUTS = (
    _Layout(
        "GPQA",
        "Question, Correct Answer, Incorrect Answer 1, Incorrect Answer 2, Incorrect Answer 3",
        ("Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))),
        _read_gpqa,
        "choice",
    ),
    _Layout("ARC", "question, choices {text, label}, answerKey", ("choices", "answerKey"), _read_arc, "choice"),
    _Layout("OlympiadBench", "question, final_answer", ("final_answer",), _read_olympiad, "math"),
)


def _with_choices(prompt: str, choices: list[str], right: int) -> tuple[str, str]:
    """The question with lettered choices, and the letter of choice `right`."""
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return "\n".join([prompt, "", *lines, "", INSTRUCTION]), letters[right]


def _id(record: dict[str, Any], column: str, number: int) -> str:
    return str(record[column]) if record.get(column) is not None else f"#{number}"


def _text(record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {column!r} {_is(value)}; allowed: a string with text in it")
    return value.strip()


def _is(value: Any) -> str:
    return "is missing" if value is None else f"is {describe(value)}"
