"""The paper's comparison at the scale of a CPU: SFT, GRPO, SFT then GRPO, LUFFY, SRFT and HPT from the same start.

There are two tasks. `hpt train sums` is done by a model of 0.2M parameters: sums that it solves sometimes or never.
`hpt train word-problems` is done by SmolLM2-135M-Instruct after some SFT: small word problems, with fewer methods and
seeds. In both, few questions have a demonstration. All demonstrations are right (clean), or each is wrong with
probability .4.

All methods make the same number of optimizer updates of as many questions. SFT takes those with a demonstration. The
learning rate of each is tuned in the same way in each condition, by held-out accuracy on seeds that are used for
nothing else: rates that differ by a factor of 3 are added until the best has a worse one on both sides. For SmolLM2
there are four rates. Of SFT then GRPO, SFT has the rate at which SFT alone is best in the middle of its run, and GRPO's
is tuned.

Then, over several seeds: every method in every condition, and HPT at other gammas of the gate. The last checkpoints are
evaluated with n responses per held-out question, for pass@k.

Every trial is recorded in --output when it is finished, and what is recorded there is not run again; runs that were
interrupted are continued. So the command can be stopped and repeated. With an empty --output it does everything.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpt.commands.arguments import positive_int
from hpt.config.recipe import load_config
from hpt.support.errors import HptError
from hpt.support.files import make_folder

from .. import runs
from ..commit import last_commit
from ..reproduction.experiments import Experiments
from ..reproduction.figures import accuracy, dynamics, questions
from ..reproduction.records import Records, read_records
from ..reproduction.tables import report
from ..reproduction.task import METHODS, SET_HERE, TASKS, Task

RESULTS = Path(__file__).parents[1] / "results" / "reproduce"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=list(TASKS), help="default: all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help="default: the task's")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: the task's")
    parser.add_argument("--tuning-seeds", nargs="+", type=int, metavar="SEED", help="default: the task's")
    parser.add_argument(
        "--learning-rates", nargs="+", type=float, metavar="LR", help="the first to try, where none are recorded"
    )
    parser.add_argument("--n", type=positive_int, help="responses per question at the end (default: the task's)")
    parser.add_argument("--jobs", type=positive_int, default=2, help="runs at once, one thread each (default 2)")
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
    if options.redraw:
        if changes or options.settings:
            parser.error("--redraw draws all records: it takes --task and --output only")
        _redraw(tasks, options.output)
        return 0
    for task, records in [(task, _records(task, options.output, options.settings)) for task in tasks]:
        with runs.hold(options.runs):
            folder = options.runs / task.recipe
            Experiments(task, folder, records, options.jobs, tuple(options.settings)).compare()
        _draw(records, task)
    return 0


def _redraw(tasks: Sequence[Task], output: Path) -> None:
    """HptError if none of the tasks has a recorded evaluation."""
    found = [(read_records(output / task.recipe), task) for task in tasks if (output / task.recipe).exists()]
    evaluated = [
        (records, task) for records, task in found if any(each.evaluation for each in records.outcomes.values())
    ]
    if not evaluated:
        names = " or ".join(task.recipe for task in tasks)
        raise HptError(f"--redraw: no evaluation of {names} is recorded in {output}")
    for records, task in evaluated:
        _draw(records, task)


def _records(task: Task, output: Path, settings: Sequence[str]) -> Records:
    """Those of a task, or new ones. HptError if they are of other runs."""
    for setting in settings:
        key = setting.partition("=")[0]
        for own in SET_HERE:
            if f"{own}.".startswith(f"{key}.") or key.startswith(f"{own}."):
                raise HptError(f"{setting}: {own} is set by the comparison itself")
    load_config(task.recipe, settings)
    folder = output / task.recipe
    make_folder(output)
    if not os.access(folder if folder.exists() else output, os.W_OK):
        raise HptError(f"--output {output}: cannot be written")
    recipe = " ".join([f"Recipe `{task.recipe}`", *settings])
    records = read_records(folder) if folder.exists() else Records(folder, recipe, [])
    if records.recipe != recipe:
        raise HptError(f"--output {folder}: holds records of {records.recipe}, not of {recipe}")
    for n in {answer.n for outcome in records.outcomes.values() for answer in outcome.evaluation}:
        if n != task.n:
            raise HptError(f"--n {task.n}: the evaluations recorded in {folder} have n = {n}")
    tuned = records.tuning_seeds | {each.trial.seed for each in records.outcomes.values() if not each.evaluation}
    for seed in tuned & set(task.seeds):
        raise HptError(f"--seeds {seed}: chose the learning rates that are recorded in {folder}")
    records.now = f"commit {last_commit('kernels', 'hpt', 'bench/reproduction')}, {runs.machine()}"
    return records


def _draw(records: Records, task: Task) -> None:
    """Write and print the tables, and draw the figures."""
    outcomes = sorted(records.outcomes.values(), key=lambda outcome: outcome.trial.name)
    text = f"{report(outcomes, task.untrained)}\n{'; '.join([records.recipe, *records.conditions])}.\n"
    (records.folder / "table.md").write_text(text)
    accuracy.draw(outcomes, records.folder / "summary.png")
    dynamics.draw(outcomes, records.folder / "dynamics.png")
    questions.draw(outcomes, records.folder / "questions.png")
    print(text)
