"""Run a benchmark: `python -m bench COMMAND [options]`."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

COMMANDS = Path(__file__).parent / "commands"


def descriptions() -> dict[str, str]:
    """The one-line description of each command, by name. Reads the files without importing them."""
    found = {}
    for path in sorted(COMMANDS.glob("*.py")):
        if path.stem != "__init__":
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
            found[path.stem] = docstring.partition("\n")[0]
    return found


def usage() -> str:
    lines = [f"  {name:<10} {description}" for name, description in descriptions().items()]
    return "\n".join(["usage: python -m bench COMMAND [options]", "", *lines])


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *options = arguments
    if command not in descriptions():
        print(f"bench: no command {command!r}\n{usage()}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"bench.commands.{command}")
    status: int = module.main(options)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
