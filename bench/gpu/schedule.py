"""Stages of a benchmark: each a process of its own with a time limit, in order of importance, within a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from upge.diagnosis.isolated import Outcome, run_isolated, side_by_side

from .clocks import Clocks

if TYPE_CHECKING:  # draws figures, whose library the stages need not load
    from .report import Report


@dataclass(frozen=True)
class Stage:
    """A function that yields rows of one part of the report."""

    name: str
    part: str
    function: Callable[..., Iterable[Any]]
    arguments: dict[str, Any]
    needs: float  # seconds: it is not started with less time left
    limit: float  # seconds: it is ended then
    workers: list[dict[str, Any]] = field(
        default_factory=lambda: [{}]
    )  # a process, and its further arguments, for each


def run_stages(stages: Sequence[Stage], report: Report, minutes: float, environment: dict[str, str]) -> None:
    """Run one after the other; the report is written after each. What fails or comes too late is recorded there.

    Raises KeyboardInterrupt after recording what the interrupted stage had found.
    """
    end = time.monotonic() + 60 * minutes
    for stage in stages:
        left = end - time.monotonic()
        print(f"-- {stage.name} ({left:.0f} s left)", flush=True)
        if left < stage.needs:
            fault = f"not started: it needs about {stage.needs:.0f} s, {left:.0f} s are left"
            report.add("stages", {"stage": stage.name, "fault": fault})
            continue
        with Clocks() as clocks:
            outcomes, interrupted = _run(stage, min(stage.limit, left), environment)
        for outcome in outcomes:
            report.add(stage.part, *outcome.results)
            if outcome.fault and not interrupted:
                print(f"{outcome.fault}\n{outcome.output}", flush=True)
        faults = "; ".join(outcome.fault[:300] for outcome in outcomes if outcome.fault)
        seconds = max((outcome.seconds for outcome in outcomes), default=0.0)
        fault = "interrupted" if interrupted else faults
        report.add("stages", {"stage": stage.name, "seconds": seconds, "fault": fault, **clocks.busy})
        if interrupted:
            raise KeyboardInterrupt


def _run(stage: Stage, limit: float, environment: dict[str, str]) -> tuple[list[Outcome], bool]:
    """What became of each of its processes, and whether the user interrupted them."""
    outcomes: list[Outcome] = []

    def run(worker: dict[str, Any]) -> None:
        outcomes.append(run_isolated(stage.function, limit, environment, **stage.arguments, **worker))

    try:
        list(side_by_side([partial(run, worker) for worker in stage.workers], len(stage.workers)))
    except KeyboardInterrupt:  # the processes have been ended, and their outcomes are there
        return outcomes, True
    return outcomes, False
