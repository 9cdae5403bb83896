"""Writes a report: figures as PNG files, and one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from hpt.records.files import METRICS
from hpt.report.figures import FIGURES, draw_figures
from hpt.report.runs import Run, group_runs, load_runs
from hpt.report.samples import sample_rollouts
from hpt.report.style import styled, to_png, to_svg
from hpt.report.summary import draw_summary
from hpt.report.tables import duration, grade_rows, method_rows, percent, points, run_rows
from hpt.support.files import make_folder, write_file_atomically
from hpt.version import VERSION

PAGE = "report.html"
_MOST_CHARACTERS = 4000  # shown of a prompt or a response
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


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
        images = {name: to_png(drawing.figure) for name, drawing in drawings.items()}
        images["summary"] = to_png(draw_summary(groups))
        figures = [
            {
                "name": name,
                "caption": drawing.caption,
                "wide": drawing.wide,
                "svg": Markup(to_svg(drawing.figure, name)),
            }
            for name, drawing in drawings.items()
        ]
    for name in FIGURES:
        path = folder / "figures" / f"{name}.png"
        if name in images:
            write_file_atomically(path, images[name])
        else:
            path.unlink(missing_ok=True)  # an earlier report of other runs may have drawn it
    page = _template().render(
        title=loaded[0].name if len(loaded) == 1 else f"{len(loaded)} runs",
        runs=loaded,
        groups=groups,
        seeds=max(len(group.runs) for group in groups),
        figures=figures,
        notes=notes,
        samples=sample_rollouts(loaded[0]) if len(loaded) == 1 else [],
        version=VERSION,
        **_tables(loaded),
    )
    write_file_atomically(folder / PAGE, page.encode("utf-8"))
    return folder / PAGE


def _tables(runs: Sequence[Run]) -> dict[str, Any]:
    if len(runs) > 1:
        return {"grades": [], "method_rows": method_rows(group_runs(runs)), "run_rows": run_rows(runs)}
    evaluations = runs[0].evaluations
    return {"grades": grade_rows(evaluations) if evaluations else [], "method_rows": [], "run_rows": []}


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("hpt.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "duration": duration, "shown": _shown}
    return environment.get_template("page.html.jinja")


def _shown(text: Any) -> str:
    """A model's text, made safe to show: control characters as pictures, lone surrogates replaced, long text cut."""
    text = str(text)
    shown = text[:_MOST_CHARACTERS].translate(_CONTROL_PICTURES).encode("utf-8", "replace").decode()
    left = len(text) - _MOST_CHARACTERS
    return shown if left <= 0 else f"{shown} … ({left:,} more characters)"


def _default_output(runs: Sequence[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / "report"


def _is_earlier_report(folder: Path) -> bool:
    return (folder / PAGE).is_file() and not (folder / METRICS).is_file()
