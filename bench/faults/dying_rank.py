"""`hpt` as a rank that kills itself: `torchrun ... -m bench.faults.dying_rank MOMENT CALL hpt's arguments`.

MOMENT: "rollouts", "backward" or "save". Rank 1 dies where it enters the CALL-th one.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from hpt.commands.main import main
from hpt.optim.deepspeed import DeepSpeedEngine
from hpt.rollout.transformers import TransformersEngine

PLACES: dict[str, tuple[Any, str]] = {
    "rollouts": (TransformersEngine, "generate"),
    "backward": (DeepSpeedEngine, "backward"),
    "save": (torch, "save"),
}


def die_at(moment: str, call: int) -> None:
    owner, name = PLACES[moment]
    original = getattr(owner, name)
    calls = 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(owner, name, counted)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        die_at(sys.argv[1], int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
