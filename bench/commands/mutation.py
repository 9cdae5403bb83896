"""Mutation testing of what holds the mathematics and the promises.

Would the tests notice a small fault there? mutmut puts one fault after the other into the files that
bench/mutation/pyproject.toml names, and runs the tests that call the changed function. The table says how many were
caught. Each fault that was not is judged in bench/mutation/survivors.yaml; the command fails where one is not judged,
or where fewer than 95% are caught.

Results are kept in build/mutation and, with --out, in a file: the command can be stopped and repeated, also in another
clone. A function that changed is tested again. After a change of tests alone, name the mutants to test again, as in
'hpt.method.gate.*', or test all again that were neither caught nor judged (--missed).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import yaml

from hpt.commands.arguments import positive_int
from hpt.support.files import write_file_atomically

from ..commit import ROOT, last_commit
from ..output import output_path

FOLDER = ROOT / "build" / "mutation"
LINKS = {
    "hpt": "hpt",
    "upge": "kernels/upge",
    "tests": "tests",
    "bench": "bench",
    "pyproject.toml": "bench/mutation/pyproject.toml",
}
SURVIVORS = ROOT / "bench" / "mutation" / "survivors.yaml"
REQUIRED = 0.95
CAUGHT = {"killed", "timeout", "segfault"}
HEAD = """# Mutation testing

`make mutation`, by mutmut 3.8.1, of commit {commit}. Caught: a test fails, or never ends; of a mutant of upge, one of
upge's own tests. Tests of whole runs, of several processes and of Triton kernels are left out, so what they alone would
notice is not caught. What has no mutants: code outside functions, functions with a decorator (properties and Triton
kernels too), the arguments of `raise` and of what is logged.

"""


@dataclass(frozen=True)
class Mutant:
    """One fault. `was` and `now` are the changed code in one line, of those that were tested and not caught."""

    file: str
    status: str
    was: str = ""
    now: str = ""
    name: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.was, self.now


Judgements = dict[tuple[str, str, str], str]
"""Why a fault is none or needs no test, by its `key`."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mutants", nargs="*", help="test these again, known results or not (patterns of names)")
    parser.add_argument(
        "--missed", action="store_true", help="test again what was not caught, with tests as they are now"
    )
    parser.add_argument("--jobs", type=positive_int, default=2, help="mutants at the same time (default 2)")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument(
        "--out", type=output_path, help="write OUT.md and OUT.json.gz, whose results are not found again"
    )
    options = parser.parse_args(argv)
    copies = set_up()
    kept = options.out.with_suffix(".json.gz") if options.out else None
    if not options.table_only:
        if kept and kept.exists():
            restore(kept, copies)
        try:
            run_mutmut(copies, options.jobs, options.mutants)
            if options.missed and (names := missed(results(), read_judgements(SURVIVORS))):
                run_mutmut(copies, options.jobs, names)
        finally:
            if kept:
                keep(kept, copies)
    found = list(results())
    judgements = read_judgements(SURVIVORS)
    text = table(found, judgements)
    print(text)
    if options.out:
        options.out.with_suffix(".md").write_text(HEAD.format(commit=last_commit("kernels", "hpt", "tests")) + text)
    return 0 if passes(found, judgements) else 1


def set_up() -> Path:
    """The folder in which mutmut runs; returns that of the changed copies, which Python must find from the start."""
    copies = FOLDER / "mutants"
    copies.mkdir(parents=True, exist_ok=True)
    for name, target in LINKS.items():
        (FOLDER / name).unlink(missing_ok=True)
        (FOLDER / name).symlink_to(ROOT / target)
    return copies


def run_mutmut(copies: Path, jobs: int, mutants: Sequence[str]) -> None:
    """Tests the mutants that have no result yet, or those of these names."""
    path = os.pathsep.join(filter(None, [str(copies), os.environ.get("PYTHONPATH")]))  # processes of tests, too
    subprocess.run(
        [sys.executable, "-c", "from mutmut.__main__ import cli; cli()", "run", f"--max-children={jobs}", *mutants],
        cwd=FOLDER,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
    )


def restore(kept: Path, copies: Path) -> None:
    """Give mutmut what `keep` wrote, of the files of which it has no results. It tests changed functions again."""
    for file, result in json.loads(gzip.decompress(kept.read_bytes())).items():
        path = copies / f"{file}.meta"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result | {"durations_by_key": {}, "estimated_durations_by_key": {}}))


def missed(found: Iterable[Mutant], judgements: Judgements) -> list[str]:
    """The names of mutants that were tested, and neither caught nor judged."""
    return [mutant.name for mutant in found if mutant.was and mutant.key not in judgements]


def keep(kept: Path, copies: Path) -> None:
    """Write the results so far: of each file the hashes of its functions and how the tests of each mutant ended."""
    found = {}
    for path in sorted(copies.rglob("*.meta")):
        result = json.loads(path.read_text())
        if any(code is not None for code in result["exit_code_by_key"].values()):
            file = str(path.relative_to(copies).with_suffix(""))
            found[file] = {name: result[name] for name in ("hash_by_function_name", "exit_code_by_key")}
    write_file_atomically(kept, gzip.compress(json.dumps(found).encode(), mtime=0))


def results() -> Iterator[Mutant]:
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.file_utils import walk_mutatable_files

    with chdir(FOLDER):
        for path in walk_mutatable_files():
            data = SourceFileMutationData(path=path)
            data.load()
            for name, code in data.exit_code_by_key.items():
                status = status_by_exit_code[code]
                if status in CAUGHT or code is None:
                    yield Mutant(str(path), status)
                else:
                    yield Mutant(str(path), status, *change(get_diff_for_mutant(name, path=path)), name)


def change(diff: str) -> tuple[str, str]:
    """What a unified diff removes and what it adds, each in one line."""
    lines = diff.splitlines()[2:]  # without the names of the files
    removed, added = ([line[1:].strip() for line in lines if line.startswith(sign)] for sign in "-+")
    return " ".join(removed), " ".join(added)


def read_judgements(path: Path) -> Judgements:
    """Of a YAML file: for each source file a list of {was, now: one line or several, why}."""
    judgements: Judgements = {}
    for file, entries in (yaml.safe_load(path.read_text()) or {}).items():
        for entry in entries:
            changes = entry["now"] if isinstance(entry["now"], list) else [entry["now"]]
            judgements |= {(file, entry["was"], now): entry["why"] for now in changes}
    return judgements


def passes(found: Sequence[Mutant], judgements: Judgements) -> bool:
    """Whether all mutants were tested, enough were caught, and the rest is judged."""
    caught = sum(mutant.status in CAUGHT for mutant in found)
    judged = all(mutant.key in judgements for mutant in found if mutant.status not in CAUGHT)
    return judged and caught >= REQUIRED * len(found)


def table(found: Sequence[Mutant], judgements: Judgements) -> str:
    """Per file, then every mutant that was not caught."""
    lines = ["| file | mutants | caught | | not caught | not judged | not tested |", "|---|---|---|---|---|---|---|"]
    files = list(dict.fromkeys(mutant.file for mutant in found))
    for file in [*files, "all"]:
        own = [mutant for mutant in found if file in (mutant.file, "all")]
        tested = [mutant for mutant in own if mutant.status != "not checked"]
        missed = [mutant for mutant in tested if mutant.status not in CAUGHT]
        open_ = sum(mutant.key not in judgements for mutant in missed)
        share = f"{1 - len(missed) / len(tested):.1%}" if tested else "-"
        counts = [len(own), len(tested) - len(missed), share, len(missed), open_, len(own) - len(tested)]
        lines.append(f"| {file} | {' | '.join(map(str, counts))} |")
    for file in files:
        missed = [mutant for mutant in found if mutant.file == file and mutant.was]
        if missed:
            lines += ["", f"{file}:", ""]
        for was, reasons in _by_line(missed, judgements).items():
            lines.append(f"- `{was}`")
            lines += [f"    - `{now}`: {why}" for now, why in reasons]
    return "\n".join(lines) + "\n"


def _by_line(missed: Sequence[Mutant], judgements: Judgements) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for mutant in missed:
        unjudged = "**not judged**" + (" (no test calls it)" if mutant.status == "no tests" else "")
        found.setdefault(mutant.was, []).append((mutant.now, judgements.get(mutant.key, unjudged)))
    return found
