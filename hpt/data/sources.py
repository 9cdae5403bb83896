"""The sources of a run's questions: one file or dataset, or several that are mixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpt.data.columns import Demonstrations, find_columns, unread_columns
from hpt.data.questions import COLUMN_SETTING, Question, parse_questions
from hpt.data.readers import read_source

if TYPE_CHECKING:
    from hpt.config.sections.data import ColumnsConfig, SourceConfig


@dataclass(frozen=True)
class LoadedSource:
    """name: its path or hub name. weight: its share when sources are mixed, relative to the others.
    questions: in the order of the data.
    unread: columns in which no field was found; only reward functions see them.
    fingerprint: of its content.
    """

    name: str
    weight: float
    questions: list[Question]
    unread: list[str]
    fingerprint: str


def load_sources(
    sources: Sequence[SourceConfig],
    columns: ColumnsConfig,
    *,
    demonstrations: Demonstrations,
    need_answer: bool,
) -> list[LoadedSource]:
    """Read and check every source; the other arguments and errors are those of `parse_questions`.

    columns: of the sources that name none.

    Of several sources each question's id begins with its source's name, so that ids differ: "gsm8k/#12".
    """
    loaded = []
    prefixes = _prefixes([config.name for config in sources])
    for config, prefix in zip(sources, prefixes, strict=True):
        source, own_columns = read_source(config.name), config.columns or columns
        questions = parse_questions(
            source,
            own_columns,
            demonstrations=demonstrations,
            need_answer=need_answer,
        )
        column_of = find_columns(
            source,
            own_columns,
            demonstrations=demonstrations,
            need_answer=need_answer,
            option=COLUMN_SETTING,
        )
        questions = [dataclasses.replace(question, id=f"{prefix}{question.id}") for question in questions]
        unread = unread_columns(source, column_of)
        loaded.append(LoadedSource(config.name, config.weight, questions, unread, source.fingerprint()))
    return loaded


def _prefixes(names: Sequence[str]) -> list[str]:
    """What the ids of each source begin with: nothing, or with several sources its last part without the ending.

    Where two would be the same, all get their number.
    """
    if len(names) == 1:
        return [""]
    stems = [Path(name).stem for name in names]
    if len(set(stems)) == len(stems):
        return [f"{stem}/" for stem in stems]
    return [f"{stem}-{number}/" for number, stem in enumerate(stems, start=1)]
