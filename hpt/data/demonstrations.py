"""Questions without a demonstration, or with one that the verifier refuses, beside questions with a right one."""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import replace

from hpt.config.schema import Config
from hpt.data.questions import Question
from hpt.data.sources import LoadedSource
from hpt.support.errors import DataError

logger = logging.getLogger(__name__)


def demonstration_count(sources: Sequence[LoadedSource]) -> int:
    """How many questions have a demonstration."""
    return sum(question.demonstration is not None for source in sources for question in source.questions)


def undemonstrated(question: Question) -> Question:
    """The question without its demonstration."""
    return replace(question, demonstration=None, turn=None)


def as_missing_demonstrations_says(config: Config, sources: Sequence[LoadedSource]) -> list[LoadedSource]:
    """The sources with or without the questions that have no demonstration; how many there are is logged.

    DataError where nothing of a source is left.
    """
    keep = config.gate.needs_rollouts and config.data.missing_demonstrations == "rollouts"
    result = []
    for source in sources:
        demonstrated = [question for question in source.questions if question.demonstration is not None]
        total, missing = len(source.questions), len(source.questions) - len(demonstrated)
        if missing:
            fate = "RL alone trains on them" if keep else "they are left out"
            logger.info(f"{source.name}: {missing:,} of {total:,} questions have no demonstration: {fate}")
        if not keep and not demonstrated:
            raise DataError(f"{source.name}: no question has a demonstration, so that all of them are left out")
        result.append(source if keep else replace(source, questions=demonstrated))
    return result


def as_wrong_demonstrations_says(
    config: Config, sources: Sequence[LoadedSource], refused: Container[str]
) -> list[LoadedSource]:
    """The sources without the refused demonstrations or, as a rule, without their questions.

    refused: the ids of the questions whose demonstration the verifier refuses.
    DataError where nothing of a source is left, or no demonstration at all.
    """
    keep = config.gate.needs_rollouts and config.data.wrong_demonstrations == "rollouts"
    kept = [replace(source, questions=_without_refused(source.questions, refused, keep)) for source in sources]
    for source in kept:
        if not source.questions:
            raise DataError(f"{source.name}: the verifier refuses every demonstration")
    if not demonstration_count(kept):
        raise DataError("the verifier refuses every demonstration: RL alone would train, as with method=grpo")
    return kept


def _without_refused(questions: Sequence[Question], refused: Container[str], keep: bool) -> list[Question]:
    """keep: whether the questions stay."""
    if keep:
        return [undemonstrated(question) if question.id in refused else question for question in questions]
    return [question for question in questions if question.id not in refused]
