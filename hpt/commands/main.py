"""The command `hpt`: runs one of its commands and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.text import Text

from hpt import __version__
from hpt.commands import compare, doctor, evaluate, export, plan, report, train
from hpt.commands.arguments import CommandParser
from hpt.support.errors import HptError

USAGE_ERROR = 2
INTERRUPTED = 130


class Command(Protocol):
    """What the module of a command has.

    The module imports what takes long to load, such as torch, inside `run`, so that help and wrong arguments are fast.
    """

    HELP: str
    """One line in the help of `hpt`."""

    def add_arguments(self, parser: CommandParser) -> None:
        """Adds the command's arguments, description and epilog to its parser."""

    def run(self, options: argparse.Namespace, console: Console) -> int:
        """Runs the command and returns its exit code. console: stderr, since stdout is for results."""


COMMANDS: dict[str, Command] = {
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "plan": plan,
    "report": report,
    "export": export,
    "doctor": doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns its exit code, 2 for an error that the user can fix, or 130 when interrupted."""
    options = make_parser().parse_args(arguments)
    sys.path.append(str(Path.cwd()))  # where a recipe's module:function may be, as with python -m
    console = Console(stderr=True, highlight=False)
    try:
        return COMMANDS[options.command].run(options, console)
    except HptError as error:
        console.print(Text.assemble(("error:", "bold red"), " ", str(error)), soft_wrap=True)
        return USAGE_ERROR
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return INTERRUPTED


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hpt",
        description="Post-train language models with SFT and RL as one gradient (Hybrid Post-Training).",
        epilog="Try it: hpt train demo && hpt report runs/demo",
    )
    parser.add_argument("--version", action="version", version=f"hpt {__version__}")
    parsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, parser_class=CommandParser
    )
    for name, command in COMMANDS.items():
        command.add_arguments(parsers.add_parser(name, help=command.HELP))
    return parser
