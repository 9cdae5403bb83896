"""Questions with their answers and demonstrations, checked as they are loaded.

A source is read and checked whole, so that one message tells what is wrong with it before any model is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hpt.data import fields
from hpt.data.columns import KNOWN_COLUMNS, find_columns, value_at
from hpt.data.fields import Message
from hpt.data.readers import Source, read_source
from hpt.support.errors import DataError

if TYPE_CHECKING:
    from hpt.config.sections.data import ColumnsConfig

COLUMN_SETTING = "data.columns.{field}=NAME"
"""How a recipe names a column."""


class Place(NamedTuple):
    """The position of a question in its source, for error messages.

    unit: "line" or "record". number: counted from 1. answer: the column of its answer.
    """

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
    grade: a label such as difficulty or subject, by which results are also reported, or None.
    columns: the record as it is in the data, with None for columns that only other records have; reward functions read
        them.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    demonstration: str | None = None
    grade: str | None = None
    place: Place | None = dataclasses.field(default=None, compare=False, repr=False)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def named(self) -> str:
        """What error messages call it."""
        return f"{self.place.unit} {self.place.number} (question {self.id})" if self.place else f"question {self.id}"


def has_answers(questions: Iterable[Question]) -> bool:
    """Whether all of them have one, so that the verifier can be asked."""
    return all(question.answer is not None for question in questions)


def load_questions(
    source: str, columns: ColumnsConfig, *, need_demonstration: bool, option: str = COLUMN_SETTING
) -> list[Question]:
    """Read every question of `source`.

    source: a .jsonl, .json (a list of objects), .csv or .parquet file; a dataset folder; or a dataset of the
        Hugging Face hub as NAME[:CONFIG]@SPLIT. Folders and hub names are read by the `datasets` library.
    columns, need_demonstration, option: as in `parse_questions`.

    Raises DataError naming file, line, field, what came and what is allowed, the first few problems in one message.
    """
    return parse_questions(read_source(source), columns, need_demonstration=need_demonstration, option=option)


def parse_questions(
    source: Source, columns: ColumnsConfig, *, need_demonstration: bool, option: str = COLUMN_SETTING
) -> list[Question]:
    """The questions of a source that has been read.

    columns: the column of each field, or None to look for it in `KNOWN_COLUMNS`.
    need_demonstration: whether a question without a demonstration is an error.
    option: how the user names a column, for the error message that one is missing.

    A question without an id gets "#" and its line (JSONL) or record number, from 1. DataError as in `load_questions`.
    """
    problems = source.problems
    if not source.records:
        problems.raise_if_any()
        raise DataError(f"{source.name} holds no questions: it is empty")
    column_of = find_columns(source, columns, need_demonstration=need_demonstration, option=option)
    convert: dict[str, Callable[[Any], Any]] = {
        "prompt": fields.prompt,
        "answer": fields.answer,
        "demonstration": fields.required_demonstration if need_demonstration else fields.demonstration,
        "id": fields.label,
        "grade": fields.label,
    }
    questions = []
    absent = dict.fromkeys(source.columns)
    number_of_id: dict[str, int] = {}
    for number, record in source.records:
        values: dict[str, Any] = dict.fromkeys(KNOWN_COLUMNS)
        for field, column in column_of.items():
            try:
                values[field] = convert[field](value_at(record, column))
            except ValueError as error:
                problems.add(number, f"field {column!r} {error}")
        id = values.pop("id") or f"#{number}"
        first = number_of_id.setdefault(id, number)
        if first != number:
            problems.add(
                number, f"field {column_of.get('id', 'id')!r} is {id!r}, the id of {problems.unit} {first} too"
            )
        place = Place(problems.unit, number, column_of["answer"])
        questions.append(Question(id, **values, place=place, columns=absent | record))
    problems.raise_if_any()
    return questions
