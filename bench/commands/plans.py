"""The time of a step of every shipped recipe for GPUs, as `hpt plan` predicts it; nothing is measured.

The cards are those that the plan takes for the recipes' memory. A short table goes into docs/planning.md, too. Flash
attention is taken to be installed, so that the result does not depend on this machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpt.config.recipe import RECIPES, read_config
from hpt.memory.plan import plan_stages
from hpt.memory.savings import as_settings
from hpt.timing import make_time_plan, speedups
from hpt.timing.plan import PHASES
from hpt.timing.table import count_text, duration, seconds_text

from ..output import output_path

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
BEGIN, END = "<!-- python -m bench plans -->\n", "<!-- end -->\n"
RESULTS = Path(__file__).parents[1] / "results" / "plans"
MACHINES = ("1x24gb", "1x48gb", "1x80gb", "8x80gb")
HEAD = ("recipe", "GPUs", *(f"{phase}, s" for phase in PHASES if phase != "evaluation"))
LAST = ("step", "generated a second", "trained a second", "steps a day", "the run", "would help most")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench plans", description=__doc__)
    parser.add_argument(
        "--out", type=output_path, default=RESULTS, help="OUT.json and OUT.md (default bench/results/plans)"
    )
    args = parser.parse_args(argv)
    rows = []
    for name in recipes():
        rows.append(planned(name))
        print(line(rows[-1]), flush=True)
    args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page(rows))
    if args.out == RESULTS:
        PAGE.write_text(with_table(PAGE.read_text(), rows))
    return 0


def recipes() -> list[str]:
    """The shipped recipes for GPUs, by machine and then by name."""
    return [path.stem for machine in MACHINES for path in sorted(RECIPES.glob(f"*-{machine}.yaml"))]


def planned(name: str) -> dict[str, Any]:
    """What the plan of a recipe says of its time, in four digits."""
    plans = plan_stages(read_config(name, [("model.attention", "flash_attention_2")]))
    time = make_time_plan(plans)
    (step,) = time.stages
    return {
        "recipe": name,
        "machine": step.machine.name,
        "phases": {phase: _rounded(seconds) for phase, seconds in step.phases.items()},
        "step": _rounded(step.seconds),
        "generated": step.generated,
        "generated_per_second": _rounded(step.generated_per_second),
        "trained": step.trained,
        "trained_per_second": _rounded(step.trained_per_second),
        "at_once": step.slots,
        "steps_per_day": _rounded(step.steps_per_day),
        "run": _rounded(time.seconds),
        "assumptions": time.assumptions,
        "speedups": [
            {"kind": each.kind, "change": as_settings(each.change), "gain": round(each.gain, 2)}
            for each in speedups(plans, time)
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def line(row: dict[str, Any]) -> str:
    """One line of the Markdown table."""
    phases = [seconds_text(row["phases"][phase]) for phase in PHASES if phase != "evaluation"]
    helps = next((each for each in row["speedups"] if each["kind"] == "settings"), None)
    cells = [
        f"`{row['recipe']}`",
        row["machine"],
        *phases,
        duration(row["step"]),
        f"{row['generated_per_second']:,.0f}",
        f"{row['trained_per_second']:,.0f}",
        count_text(row["steps_per_day"]),
        duration(row["run"]),
        f"`{helps['change']}` ({helps['gain']:.0%} less)" if helps else "nothing on the list",
    ]
    return f"| {' | '.join(cells)} |"


def with_table(text: str, rows: Sequence[dict[str, Any]]) -> str:
    """The documentation's page with the short table of `rows` between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [
        "| recipe | GPUs | rollout, s | train, s | step | steps a day | the run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = [seconds_text(row["phases"][phase]) for phase in ("rollout", "train")]
        cells = [f"`{row['recipe']}`", row["machine"], *seconds, duration(row["step"])]
        lines.append(f"| {' | '.join([*cells, count_text(row['steps_per_day']), duration(row['run'])])} |")
    return f"{before}{BEGIN}\n{chr(10).join(lines)}\n\n{END}{after}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    head = [*HEAD, *LAST]
    assumptions = list(dict.fromkeys(text for row in rows for text in row["assumptions"]))
    return "\n".join(
        [
            "# The planned time of the shipped recipes",
            "",
            "`python -m bench plans` wrote this. All of it is predicted; no GPU has run these recipes.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *map(line, rows),
            "",
            "What the plans assume, with flash attention installed:",
            "",
            *(f"- {text}" for text in assumptions),
            "",
        ]
    )
