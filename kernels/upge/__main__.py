"""Run a command: `python -m upge COMMAND [options]`."""

from __future__ import annotations

import sys

from .command_line import main

if __name__ == "__main__":
    sys.exit(main("upge", sys.argv[1:]))
