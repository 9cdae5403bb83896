"""Files of a stopped run that are cut, changed in a bit or gone: said when the run is resumed or shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hpt.records.checkpoints import checkpoints
from hpt.records.files import METRICS

from .cases import Case, Place, expect
from .world import command, expect_message, expect_same, expect_unchanged, finish, flip_a_bit, resume, state_of

FLIPS = 6


def cases() -> list[Case]:
    refused = "refused by name, the folder as it was; bit-equal from the older checkpoint"
    found = [
        Case("damage", f"a bit of a random file of the last checkpoint, {number + 1}", refused, _flipped)
        for number in range(FLIPS)
    ]
    found += [
        Case("damage", f"{name} of the last checkpoint {verb}", refused, partial(_broken, name=name, change=change))
        for name in ("model.safetensors", "trainer_state.pt", "checksums.txt")
        for verb, change in (("is cut", _cut), ("is gone", Path.unlink))
    ]
    named = "said by name, the folder as it was"
    return [
        *found,
        Case("damage", f"{METRICS} ends in a broken line", "bit-equal", _cut_metrics),
        Case("damage", f"a line of {METRICS} is broken", named, _broken_metrics),
        Case("damage", "config.yaml is cut", named, _cut_config),
        Case("damage", "a file of rollouts is cut or no text", "a report without it, or a sentence", _cut_rollouts),
        Case("damage", "the model's weights are cut before a new run", "a sentence that names model.path", _cut_model),
    ]


def _stopped(place: Place) -> Path:
    """A run that has done 2 of its 4 steps: the reference's records are cut at its older checkpoint by the resume."""
    run = place.folder / "run"
    shutil.copytree(place.reference, run)
    return run


def _flipped(place: Place) -> str:
    run = _stopped(place)
    files = sorted(path for path in checkpoints(run)[-1].iterdir() if path.is_file())
    path = place.random.choice(files)
    flip_a_bit(path, place.random.randrange(path.stat().st_size))
    return _refused_then_exact(place, run, path)


def _broken(place: Place, *, name: str, change: Callable[[Path], object]) -> str:
    run = _stopped(place)
    path = checkpoints(run)[-1] / name
    change(path)
    return _refused_then_exact(place, run, path)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _refused_then_exact(place: Place, run: Path, path: Path) -> str:
    before = state_of(run)
    expect_message(resume(run, "steps=5"), f"Remove {path.parent}", "the run goes on from step-000002")
    expect_unchanged(run, before)
    shutil.rmtree(path.parent)
    finish(resume(run))
    expect_same(run, place.reference)
    return f"{path.name} refused; bit-equal from step-000002"


def _cut_metrics(place: Place) -> str:
    run = _stopped(place)
    shutil.rmtree(checkpoints(run)[-1])
    content = (run / METRICS).read_bytes()
    last = content.rindex(b"\n", 0, -1)
    cut = place.random.randrange(last + 2, len(content) - 1)
    (run / METRICS).write_bytes(content[:cut])
    finish(resume(run))
    expect_same(run, place.reference)
    return f"cut {len(content) - cut} bytes before its end; bit-equal"


def _broken_metrics(place: Place) -> str:
    run = _stopped(place)
    lines = (run / METRICS).read_bytes().splitlines(keepends=True)
    (run / METRICS).write_bytes(b"".join([lines[0], lines[1][:40] + b"\n", *lines[2:]]))
    before = state_of(run)
    said = f"{run / METRICS}, line 2: broken record"
    expect_message(resume(run, "steps=5"), said)
    expect_message(command("report", run), said)
    expect_unchanged(run, before)
    return "line 2 named by resume and report"


def _cut_config(place: Place) -> str:
    run = _stopped(place)
    _cut(run / "config.yaml")
    before = state_of(run)
    expect_message(resume(run, "steps=5"), "error:")
    expect_unchanged(run, before)
    return "refused"


def _cut_rollouts(place: Place) -> str:
    run = _stopped(place)
    first, second, *_ = sorted((run / "rollouts").iterdir())
    content = first.read_bytes()
    seen = []
    for damage in (content[: len(content) // 3], bytes(place.random.randbytes(500)), b""):
        first.write_bytes(damage)
        with command("report", run) as process:
            status = process.wait()
            expect(status in (0, 2) and "Traceback" not in process.text, f"status {status}: {process.text[-500:]}")
            expect(status == 0 or first.name in process.text, f"{first.name} is not named: {process.text[-300:]}")
            seen.append("shown" if status == 0 else "named")
    expect(second.exists(), "another file of rollouts is gone")
    return ", ".join(seen)


def _cut_model(place: Place) -> str:
    model = place.folder / "model"
    shutil.copytree(place.recipe.parent / "model", model)
    _cut(model / "model.safetensors")
    run = place.folder / "run"
    expect_message(command("train", place.recipe, f"output={run}", f"model.path={model}"), "model.path")
    expect(not (run / METRICS).exists(), "metrics were written")
    return "refused"
