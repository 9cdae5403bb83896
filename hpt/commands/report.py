"""`hpt report`: figures and an HTML page of one or several runs."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from hpt.commands.arguments import CommandParser

logger = logging.getLogger(__name__)

HELP = "figures, and a page with all rollouts, of one run or of several side by side"


def add_arguments(parser: CommandParser) -> None:
    parser.description = (
        "Draw the figures of one run, or of several side by side, and write one HTML page with a browser of all "
        "rollouts. Many rollouts lie in report-data/ beside the page."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: the run's folder)")


def run(options: argparse.Namespace) -> int:
    logger.info(f"Reading the records of {', '.join(map(str, options.runs))}, drawing")
    from hpt.report import report

    print(report(options.runs, options.output))
    return 0
