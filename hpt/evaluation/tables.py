"""Evaluations as tables for the terminal, with 95% bootstrap intervals over questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table

from hpt.evaluation.evaluate import EvalResult
from hpt.evaluation.statistics import Estimate
from hpt.support.terminal import WIDTH, plain_table, width_of

_COLUMNS = ("95% interval", "length", "truncated", "unparsable")


def result_tables(result: EvalResult, ks: Sequence[int], title: str) -> Group:
    """The tables of one evaluation: accuracy by grade and over all questions; below it pass@k for each of `ks`.

    pass@k of the grades is shown only if all of them fit into 80 columns.
    """
    accuracy = plain_table(title, "grade", "questions", measure(result.n), *_COLUMNS)
    for grade, part in result.grades.items():
        accuracy.add_row(grade, *_cells(part))
    accuracy.add_section()
    accuracy.add_row("all", *_cells(result), style="bold")
    if max(ks) == 1:
        return Group(accuracy)
    table = _pass_table(result, ks, result.grades)
    return Group(accuracy, "", table if width_of(table) <= WIDTH else _pass_table(result, ks, {}))


def _pass_table(result: EvalResult, ks: Sequence[int], grades: Mapping[str, EvalResult]) -> Table:
    table = plain_table("", "k", "pass@k", "95% interval", *grades)
    for k in ks:
        estimate = result.pass_at(k)
        table.add_row(f"{k}", *_estimate(estimate), *(f"{part.pass_at(k).mean:.1%}" for part in grades.values()))
    return table


def benchmark_table(results: Mapping[str, EvalResult], averages: Mapping[str, Estimate], title: str) -> Table:
    """The table of several evaluations: one row per benchmark, and one per average over benchmarks."""
    table = plain_table(title, "benchmark", "questions", "", "score", *_COLUMNS)
    for name, result in results.items():
        count, *cells = _cells(result)
        table.add_row(name, count, measure(result.n), *cells)
    table.add_section()
    for name, estimate in averages.items():
        table.add_row(name, "", "", *_estimate(estimate), style="bold")
    return table


def measure(n: int) -> str:
    """The name of the share of right responses."""
    return f"avg@{n}" if n > 1 else "pass@1"


def _cells(result: EvalResult) -> list[str]:
    return [
        f"{len(result.questions):,}",
        *_estimate(result.average()),
        f"{result.length_sum / result.count:,.0f}",
        f"{result.truncated / result.count:.1%}",
        f"{result.statuses['unparsable'] / result.count:.1%}",
    ]


def _estimate(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.mean:.1%}", f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"
