"""Runs of the tests' tiny world as forked processes, and whether two runs are the same to the bit."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpt.records.checkpoints import checkpoints
from hpt.records.checksums import CHECKSUMS
from hpt.records.files import EVALUATIONS, METRICS, ROLLOUTS, read_metrics
from hpt.records.fingerprints import FINGERPRINTS

from .cases import Broken, expect
from .processes import Forked

TESTS = Path(__file__).parents[2] / "tests" / "hpt"
ROOT = TESTS.parents[1]
REFUSED, INTERRUPTED = 2, 130
MEASURED = ("time/", "throughput/", "memory/")
"""Metrics that no two runs share."""


def prepare(folder: Path) -> Path:
    """Makes the world in `folder` and this process ready to fork runs of it; returns the recipe."""
    sys.path.insert(0, str(TESTS))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"HPT_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    os.chdir(ROOT)  # so that a hostile function is `bench.faults.hostile:NAME`
    import torch
    from tiny_world import make_world

    # What a run imports after its start: once here instead of in every fork.
    import hpt.api.train
    import hpt.report
    import hpt.training.run  # noqa: F401

    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    return Path(make_world(folder))


def command(*arguments: str | Path, before: Callable[[], object] | None = None) -> Forked:
    """`hpt ARGUMENTS` as a process. before: called in it first, for a limit or a signal's handler."""

    def work() -> int:
        from hpt.commands.main import main

        if before:
            before()
        return main([str(argument) for argument in arguments])

    return Forked(work)


def train(recipe: Path, run: Path, settings: Sequence[str] = (), **options: Any) -> Forked:
    return command("train", recipe, f"output={run}", *settings, **options)


def resume(run: Path, *settings: str, **options: Any) -> Forked:
    return command("train", "--resume", run, *settings, **options)


def finish(process: Forked) -> None:
    """Waits for a process that must end without an error."""
    with process:
        status = process.wait()
        expect(status == 0, f"status {status}: {process.text[-600:]}")


def finish_run(recipe: Path, run: Path, settings: Sequence[str] = (), **options: Any) -> None:
    """Resumes a run, or starts it again where it was killed before it had written anything."""
    if (run / "config.yaml").exists():
        finish(resume(run, **options))
    else:
        finish(train(recipe, run, settings, **options))


def expect_message(process: Forked, *parts: str, status: int = REFUSED) -> str:
    """Waits for a process that must end with a sentence that has these parts, and without a traceback."""
    with process:
        found = process.wait()
        expect(found == status, f"status {found}, not {status}: {process.text[-600:]}")
        expect("Traceback" not in process.text, f"a traceback: {process.text[-600:]}")
        for part in parts:
            expect(part in process.text, f"{part!r} is not said: {process.text[-600:]}")
        return process.text


def expect_same(run: Path, reference: Path) -> None:
    """Broken unless metrics, rollouts, evaluations and the last checkpoint are the reference's, bit for bit."""
    one, other = metrics_of(run), metrics_of(reference)
    expect(len(one) == len(other), f"{METRICS} has {len(one)} lines, not {len(other)}")
    for line, right in zip(one, other, strict=True):
        for key in right.keys() | line.keys():
            expect(
                line.get(key) == right.get(key),
                f"step {right['step']}: {key} is {line.get(key)}, not {right.get(key)}",
            )
    for kind in (ROLLOUTS, EVALUATIONS):
        _expect_same_files(run / kind, reference / kind)
    expect(
        [path.name for path in checkpoints(run)] == [path.name for path in checkpoints(reference)],
        f"checkpoints {[path.name for path in checkpoints(run)]}",
    )
    for path in checkpoints(reference):
        _expect_same_files(run / "checkpoints" / path.name, path)
    partial = [
        str(path.relative_to(run))
        for path in run.rglob("*")
        if "partial" in path.name or path.name.startswith(".removed-")
    ]
    expect(not partial, f"left over: {partial}")


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.startswith(MEASURED)} for line in read_metrics(run)]


def _expect_same_files(folder: Path, right: Path) -> None:
    own = {FINGERPRINTS, CHECKSUMS}  # these name the run's folder
    names = {path.name for path in right.glob("*")} - own
    found = {path.name for path in folder.glob("*")} - own
    expect(found == names, f"{folder.name} has {sorted(found)}, not {sorted(names)}")
    for name in names:
        expect((folder / name).read_bytes() == (right / name).read_bytes(), f"{folder.name}/{name} is another")


def state_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content; a lock's is nothing."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def expect_unchanged(folder: Path, before: dict[str, bytes]) -> None:
    after = state_of(folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    expect(not changed, f"changed although it was refused: {changed}")


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    if not content:
        raise Broken(f"{path} is empty")
    content[place % len(content)] ^= 1 << (place % 8)
    path.write_bytes(content)


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    expect(before in text, f"{path.name} has no {before!r}")
    path.write_text(text.replace(before, after, 1))


def json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]
