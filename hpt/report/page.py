"""Writes a report: figures as PNG files, and one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from hpt.records.files import METRICS, ROLLOUTS, step_files
from hpt.report.bundle import content_policy, katex_styles, scripts, styles
from hpt.report.conditions import Conditions
from hpt.report.figures import FIGURES, NARROW, draw_figures
from hpt.report.rollout_data import write_rollouts
from hpt.report.runs import Run, RunGroup, group_runs, held_out_conditions, load_runs
from hpt.report.style import styled, to_png, to_svg
from hpt.report.summary import draw_summary
from hpt.report.tables import duration, grade_rows, method_rows, percent, points, run_rows, saved_rows
from hpt.support.files import make_folder, write_file_atomically
from hpt.version import VERSION

PAGE = "report.html"


def report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Draws the figures of one run, or of several side by side, and writes `report.html`. Returns the page's path.

    output: the folder for `report.html` and `figures/*.png`. Default: the run's folder; for several runs `report/` in
    the deepest folder that holds them all. Folders with an earlier report are skipped if `runs` names them too, as
    `runs/*` does.

    Raises HptError for a folder that is not a run, for a run without steps, and if something cannot be written.
    """
    folders = [folder for folder in map(Path, runs) if not _is_earlier_report(folder)]
    loaded = load_runs(folders or runs)
    folder = Path(output) if output is not None else _default_output(loaded)
    groups = group_runs(loaded)
    make_folder(folder / "figures")
    with styled():
        drawings, notes = draw_figures(groups)
        narrow, _ = draw_figures(groups, NARROW)
        images = {name: to_png(drawing.figure) for name, drawing in drawings.items()}
        images["summary"] = to_png(draw_summary(groups))
        figures = [
            {
                "name": name,
                "caption": drawing.caption,
                "wide": drawing.wide,
                "svg": Markup(to_svg(drawing.figure, name)),
                "narrow": Markup(to_svg(narrow[name].figure, f"{name}-narrow")),
            }
            for name, drawing in drawings.items()
        ]
    for name in FIGURES:
        path = folder / "figures" / f"{name}.png"
        if name in images:
            write_file_atomically(path, images[name])
        else:
            path.unlink(missing_ok=True)  # an earlier report of other runs may have drawn it
    rollouts = write_rollouts(loaded, folder) if any(step_files(run.folder, ROLLOUTS) for run in loaded) else None
    page = _template().render(
        title=loaded[0].name if len(loaded) == 1 else f"{len(loaded)} runs",
        runs=loaded,
        groups=groups,
        seeds=max(len(group.runs) for group in groups),
        figures=figures,
        notes=notes,
        rollouts=rollouts,
        styles=Markup(styles()),
        katex_styles=Markup(katex_styles()),
        scripts=[Markup(script) for script in scripts()],
        content_policy=content_policy(reads_folder=rollouts is not None and rollouts.in_folder),
        version=VERSION,
        **_tables(loaded),
    )
    write_file_atomically(folder / PAGE, page.encode("utf-8"))
    return folder / PAGE


def _tables(runs: Sequence[Run]) -> dict[str, Any]:
    tables: dict[str, Any] = {"grades": [], "methods": [], "run_rows": [], "saved_rows": saved_rows(runs)}
    if len(runs) > 1:
        return tables | {"methods": _method_tables(group_runs(runs)), "run_rows": run_rows(runs)}
    evaluations = runs[0].evaluations
    return tables | {"grades": grade_rows(evaluations) if evaluations else []}


def _method_tables(groups: Sequence[RunGroup]) -> list[dict[str, Any]]:
    """A table for each set of held-out questions; groups without an evaluation stand in the first."""
    found: list[Conditions | None] = [*held_out_conditions(groups)] or [None]
    return [
        {
            "held_out": conditions,
            "rows": method_rows([group for group in groups if (group.held_out or found[0]) == conditions]),
        }
        for conditions in found
    ]


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("hpt.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "duration": duration}
    return environment.get_template("page.html.jinja")


def _default_output(runs: Sequence[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / "report"


def _is_earlier_report(folder: Path) -> bool:
    return (folder / PAGE).is_file() and not (folder / METRICS).is_file()
