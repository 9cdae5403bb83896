"""Makes `python -m hpt` the command `hpt`, for launchers that start modules (torchrun, deepspeed)."""

import sys

from hpt.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
