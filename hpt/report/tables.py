"""The numbers of a report as tables: held-out accuracy before and after, runs, means and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from hpt.records.files import read_metrics
from hpt.report.questions import final_evaluations, mean_pass_at_k
from hpt.report.runs import Evaluation, Group, Run, read_evaluations

EMPTY = "–"


@dataclass(frozen=True)
class GradeRow:
    """Held-out accuracy of one grade (or of all questions, `grade` "all") at the first and the last evaluation."""

    grade: str
    answers: int
    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


def accuracy_table(folder: str | Path) -> Table:
    """Held-out accuracy by grade before and after, for the terminal; empty with a note where a run has none.

    folder: the run's. Raises HptError where it holds no readable metrics.
    """
    evaluations = read_evaluations(read_metrics(folder))
    if not evaluations:
        return Table(title="Held-out accuracy: no evaluation in this run")
    rows = grade_rows(evaluations)
    table = Table(title="Held-out accuracy")
    table.add_column("grade")
    table.add_column("answers", justify="right")
    table.add_column(f"before (step {evaluations[0].step})", justify="right")
    if len(evaluations) > 1:
        table.add_column(f"after (step {evaluations[-1].step})", justify="right")
        table.add_column("change", justify="right")
    for row in rows:
        cells = [row.grade, f"{row.answers:,}", percent(row.before)]
        if len(evaluations) > 1:
            cells += [percent(row.after), points(row.change)]
        table.add_row(*cells, style="bold" if row is rows[-1] else None, end_section=row in rows[-2:])
    return table


def grade_rows(evaluations: Sequence[Evaluation]) -> list[GradeRow]:
    """One row a grade and, last, one for all questions."""
    first, last = evaluations[0], evaluations[-1]
    rows = [GradeRow(g, count, first.of_grade(g), last.of_grade(g)) for g, (_, count) in last.grades.items()]
    return [*rows, GradeRow("all", last.count, first.accuracy, last.accuracy)]


def run_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The table of runs: what each was, where its held-out accuracy went, what it cost."""
    return [
        {
            "run": run.name,
            "method": run.method,
            "seed": str(run.seed),
            "steps": f"{run.last_step}" if run.finished else f"{run.last_step} of {run.planned_steps}",
            "before": percent(run.evaluations[0].accuracy if run.evaluations else None),
            "after": percent(run.evaluations[-1].accuracy if len(run.evaluations) > 1 else None),
            "sent to SFT": percent(run.share("gate/sft", "gate/questions")),
            "rollout": duration(run.phases.get("rollout")),
            "train": duration(run.phases.get("train")),
            "total": duration(run.seconds or None),
        }
        for run in runs
    ]


def method_rows(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Mean and spread over seeds: held-out accuracy before and after, overall and by grade; pass@k; what it cost.

    k is the fewest responses that any question has; with one there is no such column.
    """
    finals = {group.label: final_evaluations(group)[0] for group in groups}
    n = min((question.n for found in finals.values() for questions in found for question in questions), default=1)
    grades = list(
        dict.fromkeys(
            grade for group in groups for run in group.runs if run.evaluations for grade in run.evaluations[-1].grades
        )
    )
    rows = []
    for group in groups:
        trained = [run.evaluations for run in group.runs if len(run.evaluations) > 1]
        row = {
            "method": group.label,
            "runs": str(len(group.runs)),
            "before": spread([evaluations[0].accuracy for evaluations in trained]),
            "after": spread([evaluations[-1].accuracy for evaluations in trained]),
            "change": spread([e[-1].accuracy - e[0].accuracy for e in trained], signed=True),
        }
        for grade in grades:
            row[grade] = spread([v for e in trained if (v := e[-1].of_grade(grade)) is not None])
        if n > 1:
            row[f"pass@{n}"] = spread([mean_pass_at_k(evaluation, n) for evaluation in finals[group.label]])
        for phase in ("rollout", "train"):
            row[phase] = duration(statistics.fmean(run.phases.get(phase, 0.0) for run in group.runs) or None)
        row["time a run"] = duration(statistics.fmean(run.seconds for run in group.runs) or None)
        rows.append(row)
    return rows


def percent(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.1%}"


def points(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:+.1f}"


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean ± sample standard deviation in percent; the mean alone for one value."""
    if not values:
        return EMPTY
    mean = f"{100 * statistics.fmean(values):{'+' if signed else ''}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return EMPTY
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
