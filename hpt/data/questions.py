"""Questions with their answers and demonstrations, checked as they are loaded.

A source is read and checked whole, so that one message tells what is wrong with it before any model is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from hpt.data import fields
from hpt.data.columns import KNOWN_COLUMNS, Demonstrations, find_columns, value_at
from hpt.data.fields import Message
from hpt.data.readers import Source, read_source
from hpt.support.errors import DataError

if TYPE_CHECKING:
    from hpt.config.sections.data import ColumnsConfig

COLUMN_SETTING = "data.columns.{field}=NAME"
"""How a recipe names a column."""


class Place(NamedTuple):
    """The position of a question in its source, for error messages.

    unit: "line" or "record". number: counted from 1. answer: the column of its answer, or None.
    """

    unit: str
    number: int
    answer: str | None


@dataclass(frozen=True)
class Question:
    """One training or test question.

    prompt: the question's text, or a chat: `{"role", "content", ...}` messages, an optional system or developer
        message first, the last one from the user or a tool.
    answer: the gold answer, for the verifier, or None.
    demonstration: a worked solution, verbatim, or None. Of a chat, the text of the last assistant turn.
    grade: a label such as difficulty or subject, by which results are also reported, or None.
    turn: the demonstration as a message, where it is more than its text (tool calls, separate reasoning); the chat
        template then writes it.
    tools: what the chat template is given as `tools`, or None.
    chat_template_kwargs: what else it is given, on top of `prompt.chat_template_kwargs`, or None.
    columns: the record as it is in the data, with None for columns that only other records have; reward functions read
        them.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str | None = None
    demonstration: str | None = None
    grade: str | None = None
    turn: Message | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    place: Place | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def gold(self) -> str:
        """The answer, where the verifier needs one. DataError if there is none."""
        if self.answer is None:
            raise DataError(f"{self.named} has no answer to verify a response by")
        return self.answer

    @property
    def named(self) -> str:
        """What error messages call it."""
        return f"{self.place.unit} {self.place.number} (question {self.id})" if self.place else f"question {self.id}"


def has_answers(questions: Iterable[Question]) -> bool:
    """Whether all of them have one, so that the verifier can be asked."""
    return all(question.answer is not None for question in questions)


def load_questions(
    source: str,
    columns: ColumnsConfig,
    *,
    demonstrations: Demonstrations,
    need_answer: bool = True,
    option: str = COLUMN_SETTING,
) -> list[Question]:
    """Read every question of `source`.

    source: a .jsonl, .json (a list of objects), .csv or .parquet file; a dataset folder; or a dataset of the
        Hugging Face hub as NAME[:CONFIG]@SPLIT. Folders and hub names are read by the `datasets` library.
    columns, demonstrations, need_answer, option: as in `parse_questions`.

    Raises DataError naming file, line, field, what came and what is allowed, the first few problems in one message.
    """
    return parse_questions(
        read_source(source), columns, demonstrations=demonstrations, need_answer=need_answer, option=option
    )


def parse_questions(
    source: Source,
    columns: ColumnsConfig,
    *,
    demonstrations: Demonstrations,
    need_answer: bool = True,
    option: str = COLUMN_SETTING,
) -> list[Question]:
    """The questions of a source that has been read.

    columns: the column of each field, or None to look for it in `KNOWN_COLUMNS`.
    demonstrations: whether a question without one is an error.
    need_answer: whether a question without an answer is an error.
    option: how the user names a column, for the error message that one is missing.

    A question without an id gets "#" and its line (JSONL) or record number, from 1. DataError as in `load_questions`.
    """
    problems = source.problems
    if not source.records:
        problems.raise_if_any()
        raise DataError(f"{source.name} holds no questions: it is empty")
    column_of = find_columns(
        source,
        columns,
        demonstrations=demonstrations,
        need_answer=need_answer,
        option=option,
    )
    required = demonstrations == "required"
    convert: dict[str, Callable[[Any], Any]] = {
        "prompt": fields.prompt,
        "answer": fields.required_answer if need_answer else fields.answer,
        "demonstration": fields.required_demonstration if required else fields.demonstration,
        "messages": fields.required_conversation if required else fields.conversation,
        "tools": fields.tools,
        "chat_template_kwargs": fields.chat_template_kwargs,
        "id": fields.label,
        "grade": fields.label,
    }
    questions = []
    absent = dict.fromkeys(source.columns)
    number_of_id: dict[str, int] = {}
    for number, record in source.records:
        values: dict[str, Any] = dict.fromkeys(KNOWN_COLUMNS)
        found = len(problems.found)
        for field, column in column_of.items():
            try:
                values[field] = convert[field](value_at(record, column))
            except ValueError as error:
                problems.add(number, f"field {column!r} {error}")
        id = values["id"] or f"#{number}"
        first = number_of_id.setdefault(id, number)
        if first != number:
            problems.add(
                number, f"field {column_of.get('id', 'id')!r} is {id!r}, the id of {problems.unit} {first} too"
            )
        if len(problems.found) > found:
            continue
        try:
            prompt, turn = values["messages"] or _with_demonstration(values["prompt"], values["demonstration"])
        except ValueError as error:
            problems.add(number, f"field {column_of['demonstration']!r}, after the prompt, {error}")
            continue
        questions.append(
            Question(
                id,
                prompt,
                values["answer"],
                turn["content"] if isinstance(turn, dict) else turn,
                values["grade"],
                turn=turn if isinstance(turn, dict) and fields.is_more_than_text(turn) else None,
                tools=values["tools"],
                chat_template_kwargs=values["chat_template_kwargs"],
                columns=absent | record,
                place=Place(problems.unit, number, column_of.get("answer")),
            )
        )
    problems.raise_if_any()
    return questions


def _with_demonstration(
    prompt: str | tuple[Message, ...], demonstration: str | tuple[Message, ...] | None
) -> tuple[str | tuple[Message, ...], str | Message | None]:
    """Prompt and last assistant turn; where the demonstration has several messages, the first ones join the prompt."""
    if demonstration is None or isinstance(demonstration, str):
        return prompt, demonstration
    *earlier, turn = demonstration
    if earlier:
        asked: tuple[Message, ...] = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        prompt = fields.prompt([*asked, *earlier])
    return prompt, turn
