"""Runs cases, several at a time, each in a process of its own, and makes a table of what was seen."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hpt.verify.fork_server import adopt_orphans

from .cases import Broken, Case, Impossible, Place, Result
from .processes import kill_tree, left_over

HELD, BROKEN, IMPOSSIBLE = "held", "BROKEN", "not possible here"


def run_cases(
    cases: Sequence[Case], folder: Path, recipe: Path, reference: Path, *, seed: int, jobs: int
) -> list[Result]:
    """The results in the order of the cases. Folders of cases that did not hold are kept.

    Where this process is ended (SIGTERM, Ctrl-C), the cases under way are killed with all that they started.
    """
    adopt_orphans()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    waiting, running = list(enumerate(cases)), dict[int, int]()
    results: dict[int, Result] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, case = waiting.pop(0)
                own = folder / f"case-{number:03d}"
                own.mkdir()
                place = Place(own / "place", recipe, reference, random.Random(f"{seed} {case.title}"))
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    _run_in_child(case, place, own / "result.json")
                running[pid] = number
            pid, status = os.wait()
            if pid not in running:  # left by a case that was killed
                continue
            number = running.pop(pid)
            own = folder / f"case-{number:03d}"
            results[number] = _result(cases[number], own / "result.json", status)
            _unmount(own)
            if results[number].outcome != BROKEN:
                shutil.rmtree(own, ignore_errors=True)
            _show(results[number], len(results), len(cases))
    finally:
        for pid in running:
            kill_tree(pid)
        left_over()
        _unmount(folder)
    return [results[number] for number in range(len(cases))]


def _run_in_child(case: Case, place: Place, path: Path) -> None:
    """Never returns."""
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        adopt_orphans()
        place.folder.mkdir()
        try:
            outcome, seen = HELD, case.check(place)
        except Impossible as reason:
            outcome, seen = IMPOSSIBLE, str(reason)
        except Broken as broken:
            outcome, seen = BROKEN, str(broken)
        except Exception:
            outcome, seen = BROKEN, traceback.format_exc()
        if left := left_over():
            outcome, seen = BROKEN, f"{seen}; processes left: {left}"
        result = Result(case.family, case.name, case.holds, outcome, seen, time.monotonic() - began)
        path.write_text(json.dumps(asdict(result)))
    finally:
        os._exit(0)


def _result(case: Case, path: Path, status: int) -> Result:
    if path.exists():
        return Result(**json.loads(path.read_text()))
    return Result(case.family, case.name, case.holds, BROKEN, f"the case itself ended with status {status}", 0.0)


def _unmount(folder: Path) -> None:
    """Whatever a case that was killed has left mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        if line.split()[1].startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", line.split()[1]], check=False)


def _show(result: Result, done: int, count: int) -> None:
    print(f"[{done}/{count}] {result.outcome}: {result.family}: {result.name} ({result.seconds:.0f} s)", flush=True)
    if result.outcome != HELD:
        print(f"    {result.seen}", flush=True)


def table(results: Sequence[Result]) -> str:
    """Markdown, a row a case."""
    lines = ["| family | what is done | what must hold | outcome | seen | s |", "|---|---|---|---|---|--:|"]
    for each in results:
        cells = [each.family, each.name, each.holds, each.outcome, each.seen, f"{each.seconds:.0f}"]
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split())[:400] for cell in cells)} |")
    held = sum(each.outcome == HELD for each in results)
    broken = sum(each.outcome == BROKEN for each in results)
    lines += [
        "",
        f"{held} of {len(results)} cases held, {broken} did not, {len(results) - held - broken} not possible.",
    ]
    return "\n".join(lines) + "\n"
