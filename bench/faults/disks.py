"""A disk that fills while something is written: a file system of its own, or a limit on the size of a file."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hpt.records.files import METRICS

from .cases import Case, Impossible, Place, expect
from .processes import Forked, wait_for
from .world import command, expect_message, expect_same, finish, finish_run, train

HOLDS = "a sentence, nothing partial, bit-equal once there is room"
ROUNDS = 3


def cases() -> list[Case]:
    found = [
        Case("full disk", f"file of {what} over the limit of a file's size", HOLDS, check)
        for what, check in (
            ("a checkpoint", _limited_checkpoint),
            ("metrics", _limited_metrics),
            ("rollouts", _limited_rollouts),
            ("a report", _limited_report),
        )
    ]
    found += [
        Case("full disk", f"fills at a random moment of training, round {number + 1}", HOLDS, _fills_at_random)
        for number in range(ROUNDS)
    ]
    found += [
        Case("full disk", f"fills once {sign} is there", HOLDS, partial(_fills_when, sign=sign))
        for sign in (
            METRICS,
            "rollouts/step-000001.jsonl",
            "checkpoints/.partial-step-000002",
            "checkpoints/step-000002",
        )
    ]
    return [*found, Case("full disk", "fills before a report", HOLDS, _fills_before_a_report)]


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _limited_checkpoint(place: Place) -> str:
    """Its weights are larger, all records are smaller."""
    run = place.folder / "run"
    process = train(place.recipe, run, before=lambda: limit_files(40_000))
    expect_message(process, "step-000002 could not be written")
    return _mended(place, run)


def _limited_metrics(place: Place) -> str:
    """The last line does not fit. Rollouts are smaller, and the only checkpoint comes after it."""
    run = place.folder / "run"
    settings = ["checkpoint.every=0", "batch.questions=2"]
    whole = place.folder / "whole"
    finish(train(place.recipe, whole, settings))
    size = (whole / METRICS).stat().st_size - 200
    process = train(place.recipe, run, settings, before=lambda: limit_files(size))
    expect_message(process, f"cannot write {run / METRICS}")
    finish_run(place.recipe, run, settings)
    expect_same(run, whole)
    return f"named {METRICS}; bit-equal"


def _limited_rollouts(place: Place) -> str:
    run = place.folder / "run"
    settings = ["batch.questions=24", "rollout.n=8", "eval.every=0"]
    whole = place.folder / "whole"
    finish(train(place.recipe, whole, settings))
    size = min(path.stat().st_size for path in (whole / "rollouts").iterdir()) - 200
    process = train(place.recipe, run, settings, before=lambda: limit_files(size))
    expect_message(process, f"cannot write {run / 'rollouts' / 'step-000001.jsonl'}")
    finish_run(place.recipe, run, settings)
    expect_same(run, whole)
    return "named the file; bit-equal"


def _limited_report(place: Place) -> str:
    output = place.folder / "report"
    process = command("report", place.reference, "--output", output, before=lambda: limit_files(20_000))
    return _report_again(place, output, process)


def _report_again(place: Place, output: Path, process: Forked) -> str:
    said = expect_message(process, "cannot write")
    left = [path.name for path in output.rglob("*") if "partial" in path.name or not path.stat().st_size]
    expect(not left, f"partial files: {left}")
    finish(command("report", place.reference, "--output", output))
    return said[said.index("cannot write") :][:120]


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of its own at `folder`. Impossible where the user may not mount one."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "none", str(folder)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        raise Impossible("this user may not mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def fill(disk: Path) -> Path:
    """Writes a file until nothing more fits."""
    ballast = disk / "ballast"
    descriptor = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while os.write(descriptor, b"x" * size):
                    pass
    os.close(descriptor)
    return ballast


def _fills_at_random(place: Place) -> str:
    with small_disk(place.folder / "disk", 16) as disk:
        run = disk / "run"
        began = time.monotonic()
        finish(train(place.recipe, place.folder / "timed"))
        moment = place.random.uniform(0.1, 0.8) * (time.monotonic() - began)
        while True:
            with train(place.recipe, run) as process:
                time.sleep(moment)
                ballast = fill(disk)
                if process.wait() != 0:
                    return _fill_and_mend(place, run, process, ballast)
            moment *= 0.7  # it had written everything before: once more, and earlier
            ballast.unlink()
            shutil.rmtree(run)


def _fills_when(place: Place, *, sign: str) -> str:
    with small_disk(place.folder / "disk", 16) as disk:
        run = disk / "run"
        with train(place.recipe, run) as process:
            wait_for((run / sign).exists, process, sign)
            return _fill_and_mend(place, run, process, fill(disk))


def _fill_and_mend(place: Place, run: Path, process: Forked, ballast: Path) -> str:
    said = expect_message(process, "error:", "No space left on device")
    said = said[said.rindex("error:") :].replace(f"{run}/", "")[:100]
    ballast.unlink()
    return f"{said} ...; {_mended(place, run)}"


def _mended(place: Place, run: Path) -> str:
    partial = [path.name for path in run.rglob("*") if "partial" in path.name]
    expect(not partial, f"partial after the error: {partial}")
    finish_run(place.recipe, run)
    expect_same(run, place.reference)
    return "bit-equal"


def _fills_before_a_report(place: Place) -> str:
    with small_disk(place.folder / "disk", 16) as disk:
        output = disk / "report"
        output.mkdir()
        ballast = fill(disk)
        with command("report", place.reference, "--output", output) as process:
            process.wait()
            ballast.unlink()
            return _report_again(place, output, process)
