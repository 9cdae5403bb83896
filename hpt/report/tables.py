"""The tables of a report: held-out accuracy before and after training, runs, means and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from hpt.report.evaluations import ALL, Evaluation, grades_of
from hpt.report.questions import last_evaluations, mean_pass_at_k
from hpt.report.runs import Run, RunGroup, load_runs
from hpt.report.saved_evaluations import saved_evaluations

EMPTY = "–"


@dataclass(frozen=True)
class GradeAccuracy:
    """Held-out accuracy of one grade, or of all questions, at the first and at the last evaluation."""

    grade: str
    answers: int
    before: float | None
    after: float | None

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


def accuracy_table(folder: str | Path) -> Table:
    """A run's held-out accuracy by grade before and after training, for the terminal.

    Without an evaluation the table is empty, and its title says so. Raises HptError if the folder is not a run.
    """
    run = load_runs([folder])[0]
    evaluations = run.evaluations
    if not evaluations:
        return Table(title="Held-out accuracy: no evaluation in this run")
    rows = grade_rows(evaluations)
    table = Table(title=f"Held-out accuracy: {run.held_out}")
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


def grade_rows(evaluations: Sequence[Evaluation]) -> list[GradeAccuracy]:
    """One row per grade and, last, one for all questions."""
    first, last = evaluations[0], evaluations[-1]
    rows = [
        GradeAccuracy(grade, count, first.accuracy_of(grade), last.accuracy_of(grade))
        for grade, (_, count) in last.grades.items()
    ]
    return [*rows, GradeAccuracy(ALL, last.count, first.accuracy, last.accuracy)]


def run_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row per run: its settings, its held-out accuracy before and after, and its times."""
    return [
        {
            "run": run.name,
            "method": run.method,
            "seed": str(run.seed),
            "steps": f"{run.last_step}" if run.finished else f"{run.last_step} of {run.total_steps}",
            "held-out data": run.held_out.data if run.held_out else EMPTY,
            "before": percent(run.evaluations[0].accuracy if run.evaluations else None),
            "after": percent(run.evaluations[-1].accuracy if len(run.evaluations) > 1 else None),
            "sent to SFT": percent(run.share("gate/sft", "gate/questions")),
            "rollout": duration(run.phases.get("rollout")),
            "train": duration(run.phases.get("train")),
            "total": duration(run.seconds or None),
        }
        for run in runs
    ]


def method_rows(groups: Sequence[RunGroup]) -> list[dict[str, str]]:
    """One row per group, with mean and spread over seeds: held-out accuracy, overall and by grade; pass@k; times.

    groups: evaluated under the same conditions, or not at all. k is the fewest responses that any question has; there
    is no pass@1 column.
    """
    finals = {group.label: last_evaluations(group) for group in groups}
    n = min((question.n for found in finals.values() for questions in found for question in questions), default=1)
    grades = grades_of(run.evaluations[-1] for group in groups for run in group.runs if run.evaluations)
    rows = []
    for group in groups:
        trained = [run.evaluations for run in group.runs if len(run.evaluations) > 1]
        row = {
            "method": group.label,
            "runs": str(len(group.runs)),
            "before": spread([evaluations[0].accuracy for evaluations in trained]),
            "after": spread([evaluations[-1].accuracy for evaluations in trained]),
            "change": spread(
                [evaluations[-1].accuracy - evaluations[0].accuracy for evaluations in trained], signed=True
            ),
        }
        for grade in grades:
            accuracies = [evaluations[-1].accuracy_of(grade) for evaluations in trained]
            row[f"on {grade}"] = spread([accuracy for accuracy in accuracies if accuracy is not None])
        if n > 1:
            row[f"pass@{n}"] = spread([mean_pass_at_k(evaluation, n) for evaluation in finals[group.label]])
        for phase in ("rollout", "train"):
            row[phase] = duration(statistics.fmean(run.phases.get(phase, 0.0) for run in group.runs) or None)
        row["time per run"] = duration(statistics.fmean(run.seconds for run in group.runs) or None)
        rows.append(row)
    return rows


def saved_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row per evaluation by `hpt eval` in a run's eval/; those of the same data stand together."""
    rows = []
    for each in saved_evaluations(runs):
        n = each.conditions.n
        best = each.pass_at(n)
        average = each.pass_at(1)
        rows.append(
            {
                "data": each.conditions.name,
                "run": each.run.name,
                "checkpoint": each.checkpoint or EMPTY,
                "questions": f"{each.conditions.questions:,}",
                "sampling": each.conditions.sampling,
                "avg@n": f"{average.mean:.1%} [{100 * average.low:.1f}, {100 * average.high:.1f}]",
                "pass@n": f"{best.mean:.1%} [{100 * best.low:.1f}, {100 * best.high:.1f}]" if n > 1 else EMPTY,
            }
        )
    return rows


def percent(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.1%}"


def points(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:+.1f}"


def spread(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean ± sample standard deviation in percent; for one value only the mean."""
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
