"""Wall time by phase."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from hpt.report.panels.axes import Handle, title_and_legend
from hpt.report.runs import Run
from hpt.report.style import INK, MUTED, PHASE_COLOURS


def draw_phases(axes: Axes, runs: Sequence[Run]) -> bool:
    """Seconds by phase: one bar per phase for a single run, one stacked bar per run for several.

    Returns False, with nothing drawn, if no run records its times.
    """
    if not any(run.phases for run in runs):
        return False
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlabel("seconds")
    handles = _draw_stacked(axes, runs) if len(runs) > 1 else []
    if len(runs) == 1:
        _draw_single(axes, runs[0])
    axes.invert_yaxis()
    title_and_legend(axes, "Time by phase", handles, columns=5)
    return True


def _draw_single(axes: Axes, run: Run) -> None:
    total = sum(run.phases.values()) or 1.0
    for row, (phase, seconds) in enumerate(run.phases.items()):
        axes.barh(row, seconds, 0.62, color=_colour(phase))
        text = f" {seconds:,.3g} s, {seconds / total:.0%}"
        axes.annotate(text, (seconds, row), xytext=(3, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(run.phases)), list(run.phases))
    axes.set_xlim(0, max(run.phases.values()) * 1.25 or 1.0)


def _draw_stacked(axes: Axes, runs: Sequence[Run]) -> list[Handle]:
    recorded = {phase for run in runs for phase in run.phases}
    phases = [phase for phase in PHASE_COLOURS if phase in recorded]
    phases += sorted(recorded.difference(PHASE_COLOURS))
    for row, run in enumerate(runs):
        left = 0.0
        for phase in phases:
            seconds = run.phases.get(phase, 0.0)
            axes.barh(row, seconds, 0.7, left=left, color=_colour(phase))
            left += seconds
    axes.set_yticks(range(len(runs)), [run.name for run in runs])
    return [(phase, Patch(color=_colour(phase))) for phase in phases]


def _colour(phase: str) -> str:
    return PHASE_COLOURS.get(phase, MUTED)
