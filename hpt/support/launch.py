"""Which of a launcher's processes this one is, before anything is connected or imported."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number among those that torchrun, deepspeed or accelerate launched; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", "1"))
