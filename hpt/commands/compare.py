"""`hpt compare`: two evaluations of the same questions, question by question."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hpt.commands.arguments import CommandParser, non_negative_int
from hpt.support.errors import HptError
from hpt.support.files import make_folder
from hpt.support.terminal import plain_table, print_results

if TYPE_CHECKING:
    from hpt.evaluation.compare import Comparison

HELP = "two evaluations question by question: newly solved, forgotten, significance"
IDS_SHOWN = 8

logger = logging.getLogger(__name__)

_RULES = {
    "majority": "solved: more than half of its responses are right",
    "any": "solved: at least one of its responses is right",
    "avg": "newly solved, forgotten: its share of right responses rose, fell",
}
_EPILOG = """
The evaluation of a run is the one that hpt eval --output RUN/eval wrote, else the last one of its training.

examples:
  hpt compare runs/demo                             its first evaluation with its last
  hpt compare runs/demo runs/grpo                   the last evaluations of two runs
  hpt compare runs/demo --step-a 40                 after step 40 with the last
  hpt compare results/base results/trained          two evaluations by hpt eval
"""


def add_arguments(parser: CommandParser) -> None:
    parser.description = """\
Two evaluations of the same questions, question by question: what B solves and A did not (newly
solved), what A solved and B does not (forgotten), and how likely such a difference is by chance."""
    parser.epilog = _EPILOG
    parser.add_argument("a", metavar="A", type=Path, help="an evaluation of hpt eval --output, or a run")
    parser.add_argument(
        "b", metavar="B", type=Path, nargs="?", help="what A is compared with (default: A's own last evaluation)"
    )
    for side in "AB":
        parser.add_argument(
            f"--step-{side.lower()}",
            type=non_negative_int,
            metavar="STEP",
            help=f"use the evaluation of run {side} after this training step",
        )
    parser.add_argument(
        "--solved",
        choices=list(_RULES),
        default="majority",
        help="a question is solved if more than half of its responses are right (majority, the default) or at least "
        "one is (any); with avg, newly solved and forgotten are those whose share of right responses rose and fell",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write all numbers, question by question, to a JSON file"
    )


def run(options: argparse.Namespace) -> int:
    from hpt.evaluation.compare import Comparison, first_and_last_step, load_pairs
    from hpt.evaluation.evaluate import write_json

    a, b, steps = options.a, options.b, (options.step_a, options.step_b)
    if b is None:
        b, steps = a, first_and_last_step(a, steps)
    comparison = Comparison(load_pairs(a, b, steps), options.solved)
    _check_counts(comparison)
    side_a, side_b = _side(a, steps[0]), _side(b, steps[1])
    benchmarks, grades = comparison.by_benchmark(), comparison.by_grade()
    print_results(_table(comparison, benchmarks | grades, f"A: {side_a}\nB: {side_b}"), *_notes(comparison))
    if options.output:
        numbers = {
            "a": side_a,
            "b": side_b,
            "rule": comparison.rule,
            "all": comparison.numbers(),
            "benchmarks": {name: part.numbers() for name, part in benchmarks.items()},
            "grades": {name: part.numbers() for name, part in grades.items()},
            "per_question": [asdict(pair) | {"change": pair.change(comparison.rule)} for pair in comparison.pairs],
        }
        make_folder(options.output.parent)
        write_json(options.output, numbers)
        logger.info(f"All numbers, question by question: {options.output}")
    return 0


def _check_counts(comparison: Comparison) -> None:
    if comparison.rule != "any":
        return
    for pair in comparison.pairs:
        if pair.n_a != pair.n_b:
            raise HptError(
                f"--solved any: question {pair.id!r} has {pair.n_a} responses in A and {pair.n_b} in B, and with more "
                "responses more questions are solved; evaluate both with the same --n, or use majority or avg"
            )


def _side(path: Path, step: int | None) -> str:
    return str(path) if step is None else f"{path}, step {step}"


def _table(comparison: Comparison, parts: Mapping[str, Comparison], title: str) -> Table:
    """One row per benchmark or grade, and one for all questions."""
    table = plain_table(title, "", "count", "A", "B", "B - A", "95% interval", "newly\nsolved", "forgotten", "p")
    for name, part in parts.items():
        table.add_row(name, *_cells(part))
    table.add_section()
    table.add_row("all", *_cells(comparison), style="bold")
    return table


def _cells(part: Comparison) -> list[str]:
    mean, low, high = part.difference
    return [
        f"{len(part.pairs):,}",
        f"{part.accuracy_a:.1%}",
        f"{part.accuracy_b:.1%}",
        f"{100 * mean:+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"{len(part.changed('newly solved')):,}",
        f"{len(part.changed('forgotten')):,}",
        _p_value(part.p_of_accuracy),
    ]


def _notes(comparison: Comparison) -> list[str]:
    """The ids of the questions that changed, and how to read the table."""
    notes = [""]
    for change in ("newly solved", "forgotten"):
        pairs = comparison.changed(change)
        if pairs:
            names = [f"{pair.benchmark} {pair.id}".strip() for pair in pairs[:IDS_SHOWN]]
            more = f" and {len(pairs) - IDS_SHOWN} more" if len(pairs) > IDS_SHOWN else ""
            notes.append(f"{change.capitalize()}: {', '.join(names)}{more}")
    return [
        *notes,
        f"({_RULES[comparison.rule]})",
        "p: for accuracy B - A, by a permutation test over questions. Newly solved against forgotten, by the "
        f"sign test: p = {_p_value(comparison.p_of_changes)}",
    ]


def _p_value(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
