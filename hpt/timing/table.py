"""A plan of time as a table, a line of text, what it assumes and what would help."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from hpt.memory.savings import as_settings
from hpt.support.terminal import plain_table
from hpt.timing.advice import LEAST_GAIN, Speedup
from hpt.timing.plan import PHASES, StepTime, TimePlan

_KINDS = {
    "settings": "Would help most",
    "variance": "With a gradient of the same expectation and more variance",
    "hardware": "With more GPUs",
    "method": "With another method (it changes what is learnt)",
}


def time_table(step: StepTime) -> Table:
    """Seconds and share of each phase of a step."""
    table = plain_table(f"Time of a step of {step.config.method}\non {step.machine.name}", "", "seconds", "share")
    for phase in PHASES:
        if step.phases[phase]:
            table.add_row(phase, seconds_text(step.phases[phase]), f"{step.phases[phase] / step.seconds:.0%}")
    table.add_section()
    table.add_row("sum", seconds_text(step.seconds), "", style="bold")
    return table


def time_summary(step: StepTime) -> str:
    """One line: tokens a second and steps a day."""
    parts = [f"Predicted time of a step: {duration(step.seconds)}"]
    if step.generated:
        parts.append(
            f"{step.generated:,} tokens generated at {step.generated_per_second:,.0f} a second, {step.slots} responses "
            "at once"
        )
    parts.append(f"{step.trained:,} trained at {step.trained_per_second:,.0f} a second")
    return f"{'; '.join(parts)}; {count_text(step.steps_per_day)} steps a day"


def run_summary(time: TimePlan) -> str:
    """One line: the run's steps and how long they take."""
    steps = sum(stage.config.steps for stage in time.stages)
    return f"All {steps:,} steps: {duration(time.seconds)}"


def assumption_lines(time: TimePlan) -> list[str]:
    return ["The time assumes:", *(f"  {line}" for line in time.assumptions)]


def speedup_lines(found: Sequence[Speedup]) -> list[str]:
    """The best change of each kind."""
    lines = [f"{_KINDS[each.kind]}: {_as_options(each)}: {each.gain:.0%} less time" for each in found]
    if found and found[0].kind != "settings":
        lines.insert(
            0, f"No single setting that leaves hardware and method as they are is known to save {LEAST_GAIN:.0%}."
        )
    return lines


def _as_options(speedup: Speedup) -> str:
    """The change as `hpt plan` takes it, so that it says the same gain."""
    options = as_settings(speedup.change)
    return options if speedup.response_tokens is None else f"{options} --response-tokens {speedup.response_tokens}"


def count_text(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def seconds_text(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f}"
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def duration(seconds: float) -> str:
    """As a person says it: "42 s", "3.1 min", "5.2 h", "4.3 days"."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds_text(seconds)} s"
