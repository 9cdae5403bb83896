"""Run a benchmark: `python -m bench COMMAND [options]`."""

from __future__ import annotations

import sys

from upge.command_line import main

if __name__ == "__main__":
    sys.exit(main("bench", sys.argv[1:]))
