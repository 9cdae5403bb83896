"""A report: figures as PNG files and one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import hpt
from hpt.records.files import ROLLOUTS, read_jsonl, step_files
from hpt.report.figures import FIGURES, draw_figures, draw_summary
from hpt.report.runs import Run, group_runs, load_runs
from hpt.report.style import styled, to_png, to_svg
from hpt.report.tables import duration, grade_rows, method_rows, percent, points, run_rows
from hpt.support.files import make_folder, write_file_atomically

PAGE = "report.html"
_SHOWN_CHARACTERS = 4000  # of a prompt or a response; the rest is counted
_SHOWN_RESPONSES = 4  # of a question
_COLUMNS = ("responses", "statuses", "scores", "lengths", "finish_reasons")


def report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Draw the figures of one run, or of several side by side, and write `report.html`; returns the page's path.

    output: the folder for `report.html` and `figures/*.png`. By default that of the run; for several runs `report/`
    in the deepest folder that holds them all. Reports made there before are passed over where RUN names them too
    (as in `runs/*`).

    Raises HptError for a folder that is not a run, or one without steps, and where something can't be written.
    """
    folders = [folder for folder in map(Path, runs) if not _is_earlier_report(folder)]
    loaded = load_runs(folders or runs)
    folder = Path(output) if output is not None else _default_output(loaded)
    groups = group_runs(loaded)
    make_folder(folder / "figures")
    with styled():
        drawn, notes = draw_figures(groups)
        images = {figure.name: to_png(figure.figure) for figure in drawn}
        images["summary"] = to_png(draw_summary(groups))
        figures = [
            {
                "name": figure.name,
                "caption": figure.caption,
                "wide": figure.wide,
                "svg": Markup(to_svg(figure.figure, figure.name)),
            }
            for figure in drawn
        ]
    for name in FIGURES:
        path = folder / "figures" / f"{name}.png"
        if name in images:
            write_file_atomically(path, images[name])
        else:
            path.unlink(missing_ok=True)  # drawn by an earlier report, from other runs
    page = _template().render(
        title=loaded[0].name if len(loaded) == 1 else f"{len(loaded)} runs",
        runs=loaded,
        groups=groups,
        seeds=max(len(group.runs) for group in groups),
        figures=figures,
        notes=notes,
        samples=sample_rollouts(loaded[0]) if len(loaded) == 1 else [],
        version=hpt.__version__,
        **_tables(loaded),
    )
    write_file_atomically(folder / PAGE, page.encode("utf-8"))
    return folder / PAGE


def sample_rollouts(run: Run) -> list[dict[str, Any]]:
    """Of the first and the last step with rollouts: a question with none, with some and with all of them right.

    Of each question a right and a wrong response first, `_SHOWN_RESPONSES` in all.
    """
    files = step_files(run.folder, ROLLOUTS)
    samples: list[dict[str, Any]] = []
    for step in sorted({min(files), max(files)}) if files else []:
        kinds: dict[str, dict[str, Any]] = {}
        for record in read_jsonl(files[step]):
            if all(record.get(column) for column in _COLUMNS):
                right = sum(status == "correct" for status in record["statuses"])
                kind = "none" if not right else "all" if right == len(record["responses"]) else "some"
                kinds.setdefault(kind, record)
        samples += [_sample(kinds[kind], kind) for kind in ("none", "some", "all") if kind in kinds]
    return samples


def _sample(record: dict[str, Any], kind: str) -> dict[str, Any]:
    rows = list(zip(*(record[column] for column in _COLUMNS), strict=False))
    seen: dict[str, int] = {}
    order = []
    for index, row in enumerate(rows):  # the first of every status before the second of any
        order.append((seen.get(row[1], 0), index))
        seen[row[1]] = seen.get(row[1], 0) + 1
    names = ("text", "status", "score", "length", "finish")
    chosen = [dict(zip(names, rows[index], strict=True)) for _, index in sorted(order)[:_SHOWN_RESPONSES]]
    return {
        **{key: record.get(key) for key in ("step", "id", "grade", "answer", "P", "alpha", "beta")},
        "kind": kind,
        "right": sum(status == "correct" for status in record["statuses"]),
        "of": len(rows),
        "prompt": _prompt_text(record.get("prompt")),
        "responses": chosen,
    }


def _prompt_text(prompt: Any) -> str:
    """A chat's messages one under the other; a plain prompt as it is."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in prompt
    ):
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    return json.dumps(prompt, ensure_ascii=False)


def _tables(runs: Sequence[Run]) -> dict[str, Any]:
    if len(runs) > 1:
        return {"grades": [], "method_rows": method_rows(group_runs(runs)), "run_rows": run_rows(runs)}
    evaluations = runs[0].evaluations
    return {"grades": grade_rows(evaluations) if evaluations else [], "method_rows": [], "run_rows": []}


def _template() -> Any:
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
    """A model's text, fit for a page: control characters as pictures, no lone surrogates, cut where long."""
    text = str(text)
    cut = text[:_SHOWN_CHARACTERS].translate(_CONTROL_PICTURES).encode("utf-8", "replace").decode()
    left = len(text) - _SHOWN_CHARACTERS
    return cut if left <= 0 else f"{cut} … ({left:,} more characters)"


_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


def _default_output(runs: Sequence[Run]) -> Path:
    if len(runs) == 1:
        return runs[0].folder
    return Path(os.path.commonpath([run.folder.parent for run in runs])) / "report"


def _is_earlier_report(folder: Path) -> bool:
    return (folder / PAGE).is_file() and not (folder / "metrics.jsonl").is_file()
