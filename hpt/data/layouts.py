"""The published layouts of GPQA, ARC and OlympiadBench: how they are recognised and become questions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from hpt.data.problems import describe
from hpt.data.questions import Question
from hpt.data.readers import Record, Source

INSTRUCTION = "Put the letter of the right choice in \\boxed{}."

Scoring: TypeAlias = Literal["math", "choice"]


@dataclass(frozen=True)
class Layout:
    """name: the benchmark that is published in it.
    fields: the fields of a record, for error messages.
    marks: any of these fields tells that a file has the layout.
    convert: (record, its number, seed) -> its question. ValueError says what is wrong with the record.
    scoring: how its answers are scored.
    """

    name: str
    fields: str
    marks: tuple[str, ...]
    convert: Callable[[Record, int, int], Question]
    scoring: Scoring

    def questions(self, source: Source, seed: int) -> list[Question]:
        """The questions of a source in this layout.

        seed: decides the order of the choices where right and wrong answers are listed apart (GPQA).
        DataError names record, field, what came and what is allowed.
        """
        problems = source.problems
        questions = []
        number_of_id: dict[str, int] = {}
        for number, record in source.records:
            try:
                question = self.convert(record, number, seed)
            except ValueError as error:
                problems.add(number, f"{error}. The layout of {self.name} has {self.fields}")
                continue
            first = number_of_id.setdefault(question.id, number)
            if first != number:
                problems.add(number, f"its id is {question.id!r}, that of {problems.unit} {first} too")
            questions.append(question)
        problems.raise_if_any()
        return questions


def find_layout(source: Source) -> Layout | None:
    """The layout that the columns of `source` tell."""
    for layout in LAYOUTS:
        if not source.columns.isdisjoint(layout.marks):
            return layout
    return None


def _gpqa_question(record: Record, number: int, seed: int) -> Question:
    prompt = _text(record, "Question")
    answers = [_text(record, "Correct Answer"), *(_text(record, name) for name in _INCORRECT_ANSWERS)]
    # Sorted by a hash: the order depends only on the seed and the question, not on its place in the file or on a
    # library's version.
    order = sorted(range(4), key=lambda i: hashlib.blake2b(f"{seed}/{prompt}/{i}".encode()).digest())
    prompt, letter = _with_choices(prompt, [answers[i] for i in order], order.index(0))
    return Question(_id(record, "Record ID", number), prompt, letter, grade=record.get("High-level domain") or None)


def _arc_question(record: Record, number: int, seed: int) -> Question:
    # The hub has {question, choices {text, label}}, the authors' files {question {stem, choices [{text, label}]}}.
    inner = record.get("question")
    if isinstance(inner, dict):
        prompt, choices = _text(inner, "stem"), inner.get("choices")
    else:
        prompt, choices = _text(record, "question"), record.get("choices")
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
    texts = [_text({"choices.text": text}, "choices.text") for text in texts]
    prompt, letter = _with_choices(prompt, texts, labels.index(key))
    return Question(_id(record, "id", number), prompt, letter)


def _olympiad_question(record: Record, number: int, seed: int) -> Question:
    answers = record.get("final_answer")
    if not (isinstance(answers, list) and answers and all(isinstance(each, str) and each.strip() for each in answers)):
        raise ValueError(f"field 'final_answer' {_is(answers)}; allowed: a list of at least one string")
    prompt = _text(record, "question")
    return Question(_id(record, "id", number), prompt, ", ".join(answers), grade=record.get("subfield") or None)


_INCORRECT_ANSWERS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")

LAYOUTS = (
    Layout(
        name="GPQA",
        fields=", ".join(["Question", "Correct Answer", *_INCORRECT_ANSWERS]),
        marks=("Correct Answer", *_INCORRECT_ANSWERS),
        convert=_gpqa_question,
        scoring="choice",
    ),
    Layout(
        name="ARC",
        fields="question, choices {text, label}, answerKey",
        marks=("choices", "answerKey"),
        convert=_arc_question,
        scoring="choice",
    ),
    Layout(
        name="OlympiadBench",
        fields="question, final_answer",
        marks=("final_answer",),
        convert=_olympiad_question,
        scoring="math",
    ),
)


def _with_choices(prompt: str, choices: list[str], right: int) -> tuple[str, str]:
    """The question with lettered choices, and the letter of choice `right`."""
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]
    return "\n".join([prompt, "", *lines, "", INSTRUCTION]), letters[right]


def _id(record: Record, column: str, number: int) -> str:
    return str(record[column]) if record.get(column) is not None else f"#{number}"


def _text(record: Record, column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {column!r} {_is(value)}; allowed: a string with text in it")
    return value.strip()


def _is(value: Any) -> str:
    return "is missing" if value is None else f"is {describe(value)}"
