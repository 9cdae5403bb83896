"""`hpt report`: figures and an HTML page of one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpt.commands.arguments import CommandParser

HELP = "figures, and a page with all rollouts, of one run or of several side by side"


def add_arguments(parser: CommandParser) -> None:
    parser.description = (
        "Draw the figures of one run, or of several side by side, and write one HTML page with a browser of all "
        "rollouts. Many rollouts lie in report-data/ beside the page."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: the run's folder)")


def run(options: argparse.Namespace) -> int:
    from hpt.report import report

    print(report(options.runs, options.output))
    return 0
