"""One compact figure that sums up a run, or overlays several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from hpt.report.panels.accuracy import draw_accuracy
from hpt.report.panels.axes import draw_missing, group_styles
from hpt.report.panels.quantities import ENTROPY, LENGTH, REWARD, SFT_SHARE, draw_quantity
from hpt.report.panels.stacks import draw_gate_counts, has_gate_counts
from hpt.report.runs import RunGroup, group_runs, load_runs
from hpt.report.style import styled, to_png
from hpt.support.files import make_folder, write_file_atomically


def summary_figure(folders: Sequence[str | Path], path: str | Path) -> Path:
    """Writes the summary of one run, or of several overlaid, as a PNG of 2 x 2 panels. Returns its path.

    Panels: reward; gate counts with the share sent to SFT (of several runs, only that share); held-out accuracy;
    entropy and response length. A panel without numbers says so.
    Raises HptError for a folder that is not a run, and if the file cannot be written.
    """
    groups = group_runs(load_runs(folders))
    path = Path(path)
    with styled():
        figure = to_png(draw_summary(groups))
    make_folder(path.parent)
    write_file_atomically(path, figure)
    return path


def draw_summary(groups: Sequence[RunGroup]) -> Figure:
    """The figure of `summary_figure`."""
    figure = Figure(figsize=(10, 6.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.05))
    grid = figure.add_gridspec(2, 2)
    reward, gate, accuracy = (figure.add_subplot(grid[i // 2, i % 2]) for i in range(3))
    below = grid[1, 1].subgridspec(2, 1, hspace=0.12)
    entropy, length = (figure.add_subplot(below[i]) for i in range(2))

    if not draw_quantity(reward, groups, REWARD, legend=False):
        draw_missing(reward, REWARD.title, "no rollouts in this run")
    if len(groups) == 1 and has_gate_counts(groups[0]):
        draw_gate_counts(gate, groups[0], "Questions by right rollouts, and sent to SFT", sft_line=True)
    elif not draw_quantity(gate, groups, SFT_SHARE, legend=False):
        draw_missing(gate, SFT_SHARE.title, "not recorded")
    held_out = next((group.held_out for group in groups if group.held_out), None)
    if not draw_accuracy(accuracy, groups, held_out, legend=False):
        draw_missing(accuracy, "Held-out accuracy", "no evaluation in this run")
    for axes, quantity in ((entropy, ENTROPY), (length, LENGTH)):
        if not draw_quantity(axes, groups, quantity, legend=False):
            draw_missing(axes, quantity.title, "not recorded")
        axes.locator_params(axis="y", nbins=4)
    entropy.set_xlabel("")
    entropy.tick_params(labelbottom=False)
    if len(groups) > 1:
        _draw_legend(figure, groups)
    return figure


def _draw_legend(figure: Figure, groups: Sequence[RunGroup]) -> None:
    handles = []
    for group, colour, dash in group_styles(groups):
        label = group.label if len(group.runs) == 1 else f"{group.label} ({len(group.runs)} seeds)"
        handles.append(Line2D([], [], color=colour, linestyle=dash, lw=2.4, label=label))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 120 // (longest + 6)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, fontsize=10)
