"""The paper's comparison at the scale of a CPU: SFT, GRPO, SFT then GRPO, LUFFY, SRFT and HPT from the same start.

The task is `hpt train sums`: sums that the start model solves always, sometimes or never. All methods get the same
questions and the same number of optimizer updates. The learning rate of each is chosen from the same grid by held-out
accuracy, on a seed that is used for nothing else (the stages of SFT then GRPO take the rates of SFT and of GRPO).

Then, over several seeds: every method with clean demonstrations, every method that reads demonstrations with 40% of
them wrong, and HPT with clean ones at other gammas of the gate. The last checkpoints are evaluated with n responses per
held-out question, for pass@k.

Finished runs are kept and unfinished ones continued, so the command can be stopped and repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .. import runs
from ..reproduction import figure
from ..reproduction.experiments import STAGED, Experiments
from ..reproduction.outcomes import read_records, write_records
from ..reproduction.tables import report

RESULTS = Path(__file__).parents[1] / "results" / "reproduce"
METHODS = ("sft", "grpo", STAGED, "luffy", "srft", "hpt")
LEARNING_RATES = (1.5e-5, 5e-5, 1.5e-4, 4.5e-4, 1.35e-3)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--tuning-seed", type=int, default=100, metavar="SEED", help="default 100")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=LEARNING_RATES, metavar="LR")
    parser.add_argument("--n", type=int, default=16, help="responses per question in the last evaluation (default 16)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each (default 2)")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of table, figures and records")
    parser.add_argument("--redraw", action="store_true", help="only table and figures, from the records in --output")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, for every run")
    options = parser.parse_args(argv)
    if not options.redraw:
        if options.tuning_seed in options.seeds:
            parser.error(
                f"--tuning-seed {options.tuning_seed}: must not be one of --seeds, since its results are not reported"
            )
        with runs.hold(options.runs):
            experiments = Experiments(options.runs, options.settings, options.n, options.jobs)
            outcomes = experiments.compare(options.methods, options.seeds, options.tuning_seed, options.learning_rates)
        conditions = f"{' '.join(['Recipe `sums`', *options.settings])}; {runs.machine()}"
        write_records(options.output, outcomes, conditions)
    _show(options.output)
    return 0


def _show(folder: Path) -> None:
    """Write and print the table, and draw the figure, from the records in `folder`."""
    outcomes, conditions = read_records(folder)
    text = f"{report(outcomes)}\n{conditions}.\n"
    (folder / "table.md").write_text(text)
    figure.draw(outcomes, folder / "summary.png")
    print(text)
