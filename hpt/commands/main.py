"""The command `hpt`: runs one of its commands and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.text import Text

from hpt.commands import compare, data, doctor, evaluate, export, plan, report, serve, train
from hpt.commands.arguments import CommandParser
from hpt.support.console import visible
from hpt.support.errors import HptError
from hpt.support.messages import console, printing_messages
from hpt.support.streams import dropping_unwritable
from hpt.version import VERSION

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

    def run(self, options: argparse.Namespace) -> int:
        """Runs the command and returns its exit code. Results go to stdout; messages are logged, and go to stderr."""


COMMANDS: dict[str, Command] = {
    "train": train,
    "serve": serve,
    "eval": evaluate,
    "compare": compare,
    "data": data,
    "plan": plan,
    "report": report,
    "export": export,
    "doctor": doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns its exit code, 2 for an error that the user can fix, or 130 when interrupted."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    sys.path.append(str(Path.cwd()))  # where a recipe's module:function may be, as with python -m
    with dropping_unwritable("stderr"):
        try:
            with printing_messages():
                return COMMANDS[options.command].run(options)
        except HptError as error:
            console.print(Text.assemble(("error:", "bold red"), " ", visible(str(error))), soft_wrap=True)
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
    parser.add_argument("--version", action="version", version=f"hpt {VERSION}")
    parsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, parser_class=CommandParser
    )
    for name, command in COMMANDS.items():
        command_parser = parsers.add_parser(name, help=command.HELP)
        command.add_arguments(command_parser)
        command_parser.set_defaults(parser=command_parser)
    return parser


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command. Where one is unknown, the command's usage is shown, and what was probably meant."""
    options, unknown = make_parser().parse_known_args(arguments)
    if hasattr(options, "settings"):  # argparse leaves over those that stand behind an option
        later = [text for text in unknown if "=" in text and not text.startswith("-")]
        options.settings += later
        unknown = [text for text in unknown if text not in later]
    if unknown:
        hint = ""
        if hasattr(options, "settings") and unknown[0].startswith("--"):
            name, equals, value = unknown[0].removeprefix("--").partition("=")
            following = list(arguments)[list(arguments).index(unknown[0]) + 1 :]
            if not equals and following and not following[0].startswith("-"):
                value = following[0]
            hint = f"; settings are changed without dashes: {name.replace('-', '_')}={value or 'VALUE'}"
        options.parser.error(f"unknown argument {unknown[0]}{hint}")
    return options
