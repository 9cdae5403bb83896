"""Programs with commands, as in `python -m upge COMMAND`: each command is a file in a folder."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path

# As shells have it: 128 and the number of the signal.
INTERRUPTED, CLOSED_PIPE = 130, 141


def main(package: str, arguments: list[str]) -> int:
    """Run a command of `python -m PACKAGE`. The exit status is the command's, 2 for an unknown command.

    package: has a file commands/NAME.py for each command, with `main(arguments) -> int` and a docstring whose first
             line describes it.
    """
    try:
        status = _run(package, arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{package}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    return status


def _run(package: str, arguments: list[str]) -> int:
    descriptions = command_descriptions(package)
    lines = [f"  {name:<10} {description}" for name, description in descriptions.items()]
    usage = "\n".join([f"usage: python -m {package} COMMAND [options]", "", *lines])
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    command, *options = arguments
    if command not in descriptions:
        print(f"{package}: no command {command!r}\n{usage}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"{package}.commands.{command}").main(options)
    return status


def command_descriptions(package: str) -> dict[str, str]:
    """The one-line description of each command, by name. Reads the files without importing them."""
    commands = importlib.import_module(f"{package}.commands")
    found = {}
    for path in sorted(Path(commands.__path__[0]).glob("*.py")):
        if path.stem != "__init__":
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found[path.stem] = docstring.partition("\n")[0]
    return found
