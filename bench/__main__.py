"""Run a benchmark: `python -m bench COMMAND [options]`."""

from __future__ import annotations

import sys

from upge.command_line import main

from hpt.support.errors import HptError

if __name__ == "__main__":
    try:
        sys.exit(main("bench", sys.argv[1:]))
    except HptError as error:
        sys.exit(f"bench: {error}")
