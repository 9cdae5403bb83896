"""Faults put into real runs: kills, full disks, damaged files, hostile functions, lost ranks and servers.

Every case puts a fault into real processes and checks what must hold afterwards: mostly that the run is bit-equal to
one that nothing disturbed, that an error is a sentence, and that no process and no partial file is left. Moments and
places are drawn from the seed. Exits with 1 if anything did not hold. Needs Linux, and for disks that fill a user who
may mount.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from hpt.commands.arguments import non_negative_int, positive_int

from .. import runs
from ..commit import last_commit
from ..output import output_path


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=non_negative_int, default=72, help="kill -9, over all methods (default 72)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose family or name has this text")
    parser.add_argument("--jobs", type=positive_int, default=2, help="cases at a time (default 2)")
    parser.add_argument("--list", action="store_true", help="print the cases and leave")
    parser.add_argument("--out", type=output_path, help="write OUT.json and OUT.md")
    options = parser.parse_args(argv)
    from ..faults import families, runner, world

    cases = [case for case in families.cases(options.kills) if options.only in case.title]
    if not cases:
        parser.error(f"--only {options.only!r}: no case has this in its family or name; --list prints them")
    if options.list:
        print("\n".join(case.title for case in cases))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="hpt-faults-"))
    began = time.monotonic()
    recipe = world.prepare(folder / "world")
    reference = folder / "reference"
    world.finish(world.train(recipe, reference))
    results = [
        replace(result, seen=result.seen.replace(f"{folder}/", ""))
        for result in runner.run_cases(cases, folder, recipe, reference, seed=options.seed, jobs=options.jobs)
    ]
    minutes = (time.monotonic() - began) / 60
    broken = [each for each in results if each.outcome == runner.BROKEN]
    text = f"{runner.table(results)}\nSeed {options.seed}, {options.jobs} cases at a time, {minutes:.0f} minutes.\n"
    print(f"\n{text}", end="")
    if options.out:
        settings = {
            "command": shlex.join(["python", "-m", "bench", "faults", *argv]),
            "machine": runs.machine(),
            "versions": {name: version(name) for name in ("torch", "transformers", "hpt", "upge")},
            "commit": last_commit("kernels", "hpt", "bench/faults"),
        }
        report = {"settings": settings, "cases": [asdict(each) for each in results]}
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)
    if broken:
        print(f"The folders of the cases that did not hold are in {folder}")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0
