"""The folder of a run: read-only, moved, taken by another process."""

from __future__ import annotations

import ctypes
import shutil
import signal

from hpt.records.files import METRICS

from .cases import Case, Place, expect
from .processes import left_over, wait_for
from .world import command, expect_message, expect_same, expect_unchanged, finish, resume, state_of, train


def cases() -> list[Case]:
    return [
        Case("folder", "read-only when a run starts", "a sentence, nothing written", _read_only_start),
        Case("folder", "read-only when a run resumes", "a sentence, the folder as it was", _read_only_resume),
        Case("folder", "becomes read-only in a run", "a sentence; bit-equal once it is writable", _becomes_read_only),
        Case("folder", "read-only for a report", "a sentence", _read_only_report),
        Case("folder", "moved between kill and resume", "bit-equal", _moved_while_stopped),
        Case("folder", "moved in a run", "a sentence; bit-equal once it is back", _moved_in_a_run),
        Case("folder", "two processes in one", "the second refused; the first bit-equal", _two_processes),
        Case("folder", "another run's records there", "refused, nothing changed", _another_run),
    ]


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def without_privileges() -> None:
    """Drops the capabilities of root, for whom no folder is read-only."""
    header = _Header(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(ctypes.byref(header), ctypes.byref(none))


def _read_only_start(place: Place) -> str:
    parent = place.folder / "locked"
    parent.mkdir(mode=0o500)
    expect_message(train(place.recipe, parent / "run", before=without_privileges), "cannot be written")
    expect(not list(parent.iterdir()), "something was written")
    return "refused"


def _read_only_resume(place: Place) -> str:
    run = place.folder / "run"
    shutil.copytree(place.reference, run)
    before = state_of(run)
    run.chmod(0o500)
    (run / ".lock").chmod(0o400)
    expect_message(resume(run, "steps=5", before=without_privileges), "cannot be written")
    expect_unchanged(run, before)
    return "refused"


def _becomes_read_only(place: Place) -> str:
    run = place.folder / "run"
    with train(place.recipe, run, before=without_privileges) as process:
        wait_for((run / "checkpoints" / "step-000002").exists, process, "the first checkpoint")
        for folder in (run, run / "checkpoints", run / "rollouts"):
            folder.chmod(0o500)
        said = expect_message(process, "error: ", "Permission denied")
    for folder in (run, run / "checkpoints", run / "rollouts"):
        folder.chmod(0o700)
    finish(resume(run))
    expect_same(run, place.reference)
    return f"{said[said.rindex('error:') :].replace(f'{run}/', '')[:80]} ...; bit-equal"


def _read_only_report(place: Place) -> str:
    output = place.folder / "locked"
    output.mkdir(mode=0o500)
    expect_message(command("report", place.reference, "--output", output, before=without_privileges), "cannot")
    return "refused"


def _moved_while_stopped(place: Place) -> str:
    run, moved = place.folder / "run", place.folder / "moved"
    with train(place.recipe, run) as process:
        wait_for((run / "rollouts" / "step-000003.jsonl").exists, process, "step 3")
        process.send(signal.SIGKILL)
        process.wait()
    expect(not left_over(), "processes are left after the kill")
    run.rename(moved)
    finish(resume(moved))
    expect_same(moved, place.reference)
    return "bit-equal"


def _moved_in_a_run(place: Place) -> str:
    run, moved = place.folder / "run", place.folder / "moved"
    with train(place.recipe, run) as process:
        wait_for((run / "checkpoints" / "step-000002").exists, process, "the first checkpoint")
        run.rename(moved)
        said = expect_message(process, "error:")
    if run.exists():
        shutil.rmtree(run)
    moved.rename(run)
    finish(resume(run))
    expect_same(run, place.reference)
    return f"{said[said.rindex('error:') :].replace(str(run), 'RUN')[:100]} ...; bit-equal"


def _two_processes(place: Place) -> str:
    run = place.folder / "run"
    with train(place.recipe, run) as process:
        wait_for((run / METRICS).exists, process, "the first metrics")
        expect_message(resume(run), "another process is training in this folder")
        finish(process)
    expect_same(run, place.reference)
    return "refused; bit-equal"


def _another_run(place: Place) -> str:
    before = state_of(place.reference)
    expect_message(train(place.recipe, place.reference), "already holds a run")
    expect_unchanged(place.reference, before)
    return "refused"
