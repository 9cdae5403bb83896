"""Two ranks under torchrun, engine deepspeed: one dies in rollouts, backward or save, or the launcher is stopped."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hpt.records.checkpoints import checkpoints

from .cases import Case, Place, expect
from .processes import Forked, left_over, wait_for
from .world import expect_message, expect_same, finish, resume

SETTINGS = ["engine=deepspeed", "device=cpu", "eval.every=0", "deepspeed.timeout=2"]
CALLS = {"rollouts": 3, "backward": 4, "save": 2}
"""In step 3, or in the save after step 4."""


def cases() -> list[Case]:
    """One case, so that all share one undisturbed run of two ranks."""
    holds = "the others end too; bit-equal after a resume on two"
    return [
        Case("ranks", "rank 1 of 2 killed in rollouts, backward and save; SIGTERM to torchrun", holds, _check),
    ]


def torchrun(arguments: Sequence[str], *, dying: tuple[str, int] | None = None) -> Forked:
    """`hpt ARGUMENTS` on two ranks. dying: the moment and the call at which rank 1 dies."""
    program = ["bench.faults.dying_rank", dying[0], str(dying[1])] if dying else ["hpt"]
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")]
    return Forked(partial(_replace, [*command, "-m", *program, *arguments]))


def _replace(command: list[str]) -> int:
    os.execv(command[0], command)


def _check(place: Place) -> str:
    reference = place.folder / "reference"
    finish(torchrun(["train", str(place.recipe), f"output={reference}", *SETTINGS]))
    for moment, call in CALLS.items():
        run = place.folder / moment
        with torchrun(["train", str(place.recipe), f"output={run}", *SETTINGS], dying=(moment, call)) as launcher:
            expect(launcher.wait() != 0, f"{moment}: the launcher ended well although a rank was killed")
        _go_on(run, reference, moment, 2)
    run = place.folder / "launcher"
    with torchrun(["train", str(place.recipe), f"output={run}", *SETTINGS]) as launcher:
        wait_for((run / "rollouts" / "step-000001.jsonl").exists, launcher, "the first step")
        launcher.send(signal.SIGTERM)
        launcher.wait()
        expect("Stopped after step" in launcher.text, f"not stopped after a step: {launcher.text[-600:]}")
    _go_on(run, reference, "SIGTERM to torchrun", 1)
    expect_message(resume(reference, "steps=5"), "was written by 2 processes, and this run has 1")
    return f"{', '.join(CALLS)}, SIGTERM: bit-equal; resume on one rank refused"


def _go_on(run: Path, reference: Path, what: str, at_least: int) -> None:
    left = left_over()
    expect(not left, f"{what}: processes left: {left}")
    saved = [int(path.name[-6:]) for path in checkpoints(run)]
    expect(saved and saved[-1] >= at_least, f"{what}: checkpoints after steps {saved}")
    finish(torchrun(["train", "--resume", str(run)]))
    expect_same(run, reference)
