"""The paper's comparison at the scale of a CPU: SFT, GRPO, SFT then GRPO, LUFFY, SRFT and HPT from the same start.

There are two tasks. `hpt train sums` is done by a model of 0.2M parameters: sums that it solves sometimes or never.
`hpt train word-problems` is done by SmolLM2-135M-Instruct after some SFT: small word problems, with fewer methods and
seeds. In both, few questions have a demonstration. All demonstrations are right (clean), or 40% of them are wrong.

All methods get the same questions and the same number of optimizer updates. The learning rate of each is tuned in the
same way in each condition, by held-out accuracy on seeds that are used for nothing else: rates that differ by a factor
of 3 are added until the best has a worse one on both sides. For SmolLM2 only two rates are tried. Of SFT then GRPO, SFT
has the rate of SFT alone, and GRPO's is tuned.

Then, over several seeds: every method in every condition, and HPT at other gammas of the gate. The last checkpoints are
evaluated with n responses per held-out question, for pass@k.

Every trial is recorded in --output when it is finished, and what is recorded there is not run again; runs that were
interrupted are continued. So the command can be stopped and repeated. With an empty --output it does everything.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import runs
from ..commit import last_commit
from ..reproduction.experiments import Experiments
from ..reproduction.figures import accuracy, dynamics, questions
from ..reproduction.records import Records, read_records
from ..reproduction.tables import report
from ..reproduction.task import METHODS, TASKS

RESULTS = Path(__file__).parents[1] / "results" / "reproduce"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=list(TASKS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="default: the task's")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: the task's")
    parser.add_argument("--tuning-seeds", nargs="+", type=int, metavar="SEED", help="default: the task's")
    parser.add_argument("--learning-rates", nargs="+", type=float, metavar="LR", help="the first to try")
    parser.add_argument("--n", type=int, help="responses per question in the last evaluation (default: the task's)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of tables, figures and records")
    parser.add_argument("--redraw", action="store_true", help="only tables and figures, from the records in --output")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, for every run")
    options = parser.parse_args(argv)
    changes = {
        "methods": options.methods,
        "seeds": options.seeds,
        "tuning_seeds": options.tuning_seeds,
        "rates": options.learning_rates,
        "n": options.n,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    tasks = [replace(task, **changes) for task in TASKS.values() if options.task in (None, task.recipe)]
    if options.redraw and (changes or options.settings):
        parser.error("--redraw draws all records: it takes --task and --output only")
    for task in tasks:
        if shared := set(task.tuning_seeds) & set(task.seeds):
            parser.error(f"--tuning-seeds {shared.pop()}: must not be one of --seeds, since it chooses the rates")
    for task in tasks:
        folder = options.output / task.recipe
        if options.redraw and not folder.exists():
            parser.error(f"--redraw: there are no records in {folder}")
        if not options.redraw:
            recipe = " ".join([f"Recipe `{task.recipe}`", *options.settings])
            records = _records(folder, recipe)
            if records.recipe != recipe:
                parser.error(f"--output {folder}: holds records of {records.recipe}, not of {recipe}")
            with runs.hold(options.runs):
                runs_folder = options.runs / task.recipe
                Experiments(task, runs_folder, records, options.jobs, tuple(options.settings)).compare()
        _show(folder, task.untrained)
    return 0


def _records(folder: Path, recipe: str) -> Records:
    """Those in the folder, to which this commit and machine are added, or new ones."""
    records = read_records(folder) if folder.exists() else Records(folder, recipe, [])
    now = f"commit {last_commit('kernels', 'hpt')}, {runs.machine()}"
    if now not in records.conditions:
        records.conditions.append(now)
    return records


def _show(folder: Path, untrained: str) -> None:
    """Write and print the tables, and draw the figures, from the records in `folder`."""
    records = read_records(folder)
    outcomes = list(records.outcomes.values())
    text = f"{report(outcomes, untrained)}\n{'; '.join([records.recipe, *records.conditions])}.\n"
    (folder / "table.md").write_text(text)
    accuracy.draw(outcomes, folder / "summary.png")
    dynamics.draw(outcomes, folder / "dynamics.png")
    questions.draw(outcomes, folder / "questions.png")
    print(text)
