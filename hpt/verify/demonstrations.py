"""Demonstrations whose final answer the verifier refuses: found before a run trains on them."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpt.data.questions import Question
from hpt.support.files import make_folder, write_file_atomically
from hpt.support.named_functions import resolve
from hpt.verify.answers import unusable_answers
from hpt.verify.verifier import Verifier

if TYPE_CHECKING:
    from hpt.config.sections.rollout import VerifyConfig

SAMPLE = 2_000
"""Demonstrations that are checked where the result only informs."""

_CHUNK = 500
_SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedDemonstrations:
    """possible: questions with a demonstration and an answer that the verifier can use, among those looked at.
    checked: how many of them were verified.
    refused: the status ("incorrect", "unparsable", "timeout") of each that is not correct, by the question's id.
    """

    possible: int
    checked: int
    refused: dict[str, str]

    @property
    def summary(self) -> str:
        """A sentence on how many are wrong, and the first of them."""
        if not self.refused:
            return f"the verifier refuses the final answer of none of {self.checked:,} demonstrations checked"
        of = f"{self.checked:,}" + (f" checked (of {self.possible:,})" if self.checked < self.possible else "")
        statuses = ", ".join(f"{count:,} {status}" for status, count in Counter(self.refused.values()).most_common())
        first = ", ".join(list(self.refused)[:3])
        return (
            f"the verifier refuses the final answer of {len(self.refused):,} of {of} demonstrations: {statuses}; "
            f"questions {first}" + (", ..." if len(self.refused) > 3 else "")
        )


def check_demonstrations(
    verifier: Verifier, questions: Sequence[Question], *, limit: int | None = None, parsable: bool = False
) -> CheckedDemonstrations:
    """Verify demonstrations against the answers of their questions; those that have no answer are left out.

    limit: check this many at most, evenly spaced over the questions; None checks all.
    parsable: whether the verifier is known to take all answers; the questions whose answers it does not take are left
        out.
    """
    with_both = [question for question in questions if question.demonstration and question.answer is not None]
    chosen = with_both if limit is None else evenly_spaced(with_both, limit)
    refused: dict[str, str] = {}
    checked = 0
    told = time.monotonic()
    for start in range(0, len(chosen), _CHUNK):
        chunk = chosen[start : start + _CHUNK]
        if not parsable:
            unusable = {question.id for question in unusable_answers(verifier, chunk)}
            chunk = [question for question in chunk if question.id not in unusable]
        verdicts = verifier.score([str(question.demonstration) for question in chunk], [each.gold for each in chunk])
        for question, verdict in zip(chunk, verdicts, strict=True):
            if verdict.status != "correct":
                refused[question.id] = verdict.status
        checked += len(chunk)
        if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            logger.info("Verified %s of %s demonstrations", f"{start + _CHUNK:,}", f"{len(chosen):,}")
    return CheckedDemonstrations(len(with_both), checked, refused)


def evenly_spaced(questions: Sequence[Question], limit: int) -> Sequence[Question]:
    """All questions, or `limit` of them, from the first on."""
    if len(questions) <= limit:
        return questions
    return [questions[place * len(questions) // limit] for place in range(limit)]


def remembered_check(
    path: Path,
    settings: VerifyConfig,
    verifier: Verifier,
    questions: Sequence[Question],
    *,
    limit: int | None,
    parsable: bool,
) -> CheckedDemonstrations:
    """As `check_demonstrations`, with the result kept in the file `path` for the same questions and verifier."""
    key = _key(settings, questions, limit)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        found = CheckedDemonstrations(known["possible"], known["checked"], known["refused"])
        if known["key"] == key and known["checksum"] == _checksum(found):
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no file yet, or one that is not whole
    result = check_demonstrations(verifier, questions, limit=limit, parsable=parsable)
    make_folder(path.parent)
    record = {"key": key, "checksum": _checksum(result), **asdict(result)}
    write_file_atomically(path, json.dumps(record).encode())
    return result


def _checksum(result: CheckedDemonstrations) -> str:
    """So that a file that was changed is not taken for the result."""
    return hashlib.sha256(json.dumps(asdict(result)).encode()).hexdigest()


def _key(settings: VerifyConfig, questions: Sequence[Question], limit: int | None) -> str:
    """A hash of what the result depends on: the verifier, the text of its function, and the questions."""
    digest = hashlib.sha256(json.dumps([settings.name, settings.timeout, settings.memory_mb, limit]).encode())
    if settings.function:
        with suppress(OSError, TypeError):  # a function without source, such as a builtin
            digest.update(inspect.getsource(resolve(settings.function, field="verify.function")).encode())
    for question in questions:
        digest.update(json.dumps([question.id, question.answer, question.demonstration]).encode())
    return digest.hexdigest()
