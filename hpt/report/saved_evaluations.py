"""Evaluations that `hpt eval` wrote into a run's eval/, of any data, beside those of the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpt.evaluation.evaluate import RESULTS, SUMMARY
from hpt.evaluation.statistics import Estimate, bootstrap, pass_at_k
from hpt.records.files import EVALUATIONS
from hpt.report.conditions import Conditions, data_name, sampling_of, tell_apart
from hpt.report.evaluations import QuestionCounts, keys_of, read_question_counts
from hpt.report.runs import Run


@dataclass(frozen=True)
class SavedEvaluation:
    """checkpoint: the name of the evaluated one, "" if it is not known."""

    run: Run
    conditions: Conditions
    checkpoint: str
    questions: tuple[QuestionCounts, ...]

    def pass_at(self, k: int) -> Estimate:
        return bootstrap([pass_at_k(question.n, question.correct, k) for question in self.questions])


def saved_evaluations(runs: Sequence[Run]) -> list[SavedEvaluation]:
    """All of them, those under the same conditions one after the other."""
    found = [_read(run, path) for run in runs for path in _paths(run)]
    conditions = tell_apart([(each.conditions, repr(each.run.seed), keys_of(each.questions)) for each in found])
    told_apart = [replace(each, conditions=own) for each, own in zip(found, conditions, strict=True)]
    return sorted(told_apart, key=lambda each: str(each.conditions))


def _paths(run: Run) -> list[Path]:
    folder = run.folder / EVALUATIONS
    return [path for path in (folder / RESULTS, *sorted(folder.glob(f"*/{RESULTS}"))) if path.is_file()]


def _read(run: Run, path: Path) -> SavedEvaluation:
    questions = read_question_counts(path)
    settings = _settings(path.with_name(SUMMARY))
    data = data_name(settings.get("data", path.relative_to(run.folder).as_posix()))
    n = min(question.n for question in questions)
    conditions = Conditions(data, len(questions), n, **sampling_of(settings))
    return SavedEvaluation(run, conditions, Path(str(settings.get("model", ""))).name, questions)


def _settings(path: Path) -> dict[str, Any]:
    """The settings in summary.json; empty where there are none to be read."""
    try:
        settings = json.loads(path.read_bytes()).get("settings")
    except (OSError, ValueError, AttributeError):
        return {}
    return settings if isinstance(settings, dict) else {}
