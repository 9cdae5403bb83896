"""hpt.report: the tables of one run and of several, in the page and in the terminal."""

import json
import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from report_page import Page
from rich.console import Console
from written_run import GRADES, write_run

from hpt.records.files import read_metrics
from hpt.report import accuracy_table, report
from hpt.report.evaluations import natural_key
from hpt.report.panels.accuracy import draw_before_after, draw_by_grade
from hpt.report.panels.phases import draw_phases
from hpt.report.runs import group_runs, load_runs
from hpt.report.tables import method_rows


def rendered(table) -> list[list[str]]:
    """A rich table's cells as text, row by row."""
    console = Console(width=200)
    columns = [list(column.cells) for column in table.columns]
    assert console.render_lines(table)  # it can be shown
    return [[str(cell) for cell in row] for row in zip(*columns, strict=True)]


def final_counts(folder: Path) -> list[int]:
    path = max((folder / "eval").iterdir())
    return [json.loads(line)["correct"] for line in path.read_text().splitlines()]


def test_the_tables_of_several_runs(several):
    folders, path = several
    methods, runs = Page(path).tables
    evaluated = {folder.name: [line for line in read_metrics(folder) if "eval/count" in line] for folder in folders}
    for row in methods[1:]:
        name, count, before, after, change, *grades, best_of_4, rollout, train, _ = row
        assert count == "2"
        pairs = [(evaluated[f"{name}-{seed}"][0], evaluated[f"{name}-{seed}"][-1]) for seed in (0, 1)]
        first, last = ([100 * pair[i]["eval/correct"] / pair[i]["eval/count"] for pair in pairs] for i in (0, 1))
        moved = [b - a for a, b in zip(first, last, strict=True)]
        assert before == f"{statistics.mean(first):.1f} ± {statistics.stdev(first):.1f}"
        assert after == f"{statistics.mean(last):.1f} ± {statistics.stdev(last):.1f}"
        assert change == f"{statistics.mean(moved):+.1f} ± {statistics.stdev(moved):.1f}"
        for grade, cell in zip(GRADES, grades, strict=True):
            values = [100 * pair[1][f"eval/correct/{grade}"] / pair[1][f"eval/count/{grade}"] for pair in pairs]
            assert cell == f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
        solved = [
            100 * statistics.mean(map(bool, final_counts(folder))) for folder in folders if folder.name[:3] == name
        ]  # pass@n of n responses is the share of questions that have a right one
        assert best_of_4 == f"{statistics.mean(solved):.1f} ± {statistics.stdev(solved):.1f}"
        assert (train, rollout == "–") == ("10.8 s", name == "sft")
    assert methods[0][5:] == [*(f"on {grade}" for grade in GRADES), "pass@4", "rollout", "train", "time per run"]
    for folder, row in zip(folders, runs[1:], strict=True):
        cells = dict(zip(runs[0], row, strict=True))
        lines = read_metrics(folder)[1:]
        sent = sum(line["gate/sft"] for line in lines) / sum(line["gate/questions"] for line in lines)
        assert (cells["run"], cells["seed"], cells["steps"]) == (folder.name, folder.name[-1], "12")
        assert cells["sent to SFT"] == f"{sent:.1%}"


def test_a_report_of_several_runs_is_written_beside_them_and_skipped_the_next_time(several):
    folders, path = several
    root = folders[0].parent
    assert path == root / "report" / "report.html"
    before = path.read_bytes()
    assert report(sorted(root.iterdir())) == path  # as `hpt report runs/*` names it
    assert len(Page(path).tables[1]) == len(folders) + 1
    path.write_bytes(before)


def test_the_accuracy_table_has_every_grade_before_and_after(one):
    folder, path = one
    assert rendered(accuracy_table(folder)) == Page(path).tables[-1][1:]


def test_grades_are_sorted_by_their_numbers_whatever_digits_they_have():
    long = "9" * 5000
    grades = ["", "1 digit", "2 digits", "007", "10 digits", f"1{long}", "level 2", "level 10", "²", "level ²"]
    in_order = ["", "1 digit", "2 digits", "007", "10 digits", f"1{long}", "level 2", "level 10", "level ²", "²"]
    assert sorted(grades, key=natural_key) == in_order
    assert sorted([f"2{long}", f"1{long}", "3"], key=natural_key) == ["3", f"1{long}", f"2{long}"]


def test_a_grade_may_be_called_all(tmp_path):
    folder = write_run(tmp_path / "run", steps=9, eval_every=9)
    metrics = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(metrics.replace("/1 digit", "/all"))
    last = read_metrics(folder)[-1]
    expected = [
        [last[f"eval/correct{key}"] / last[f"eval/count{key}"] for key in keys]
        for keys in (("/2 digits", "/10 digits", "/all", ""), ("/all", ""))
    ]
    assert expected[1][0] != expected[1][1]

    rows = rendered(accuracy_table(folder))
    assert [row[0] for row in rows] == ["2 digits", "10 digits", "all", "all"]
    assert [row[3] for row in rows] == [f"{value:.1%}" for value in expected[0]]

    (run,) = load_runs([folder])
    groups = group_runs([run])
    (before_after, by_grade) = Figure().subplots(2)
    draw_before_after(before_after, run)
    ends = [text.get_text().split(" → ")[1] for text in before_after.texts]
    assert ends == [f"{value:.0%}" for value in reversed(expected[0])]
    assert [text.get_weight() for text in before_after.texts] == ["bold", "normal", "normal", "normal"]
    draw_by_grade(by_grade, groups, groups[0].held_out)
    np.testing.assert_allclose([bar.get_height() for bar in by_grade.patches], expected[0])
    (row,) = method_rows(groups)
    assert row["on all"] == f"{100 * expected[1][0]:.1f}"


def test_a_grade_with_the_name_of_a_column_does_not_replace_it(tmp_path):
    folder = write_run(tmp_path / "run")
    metrics = (folder / "metrics.jsonl").read_text()
    (expected,) = method_rows(group_runs(load_runs([folder])))
    (folder / "metrics.jsonl").write_text(metrics.replace("/1 digit", "/before"))
    (row,) = method_rows(group_runs(load_runs([folder])))
    assert row.pop("on before") == expected.pop("on 1 digit")
    assert row == expected


def test_the_accuracy_table_of_one_evaluation_has_no_after(tmp_path):
    folder = write_run(tmp_path / "run", steps=9, done=1)
    table = accuracy_table(folder)
    assert [column.header for column in table.columns] == ["grade", "answers", "before (step 0)"]
    assert len(rendered(table)) == 4


def test_a_run_that_was_evaluated_once_has_neither_before_nor_after(tmp_path):
    folders = [write_run(tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1)]
    (both,) = method_rows(group_runs(load_runs(folders[:1])))
    lines = [json.loads(line) for line in (folders[1] / "metrics.jsonl").read_text().splitlines()]
    kept = [lines[0], *({k: v for k, v in line.items() if not k.startswith("eval/")} for line in lines[1:])]
    (folders[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (row,) = method_rows(group_runs(load_runs(folders)))
    assert row["runs"] == "2"
    assert [row[name] for name in ("before", "after", "change")] == [both[n] for n in ("before", "after", "change")]


def test_a_mark_in_each_bar_is_the_accuracy_before_training(tmp_path):
    folder = write_run(tmp_path / "run")
    groups = group_runs(load_runs([folder]))
    axes = Figure().subplots()
    draw_by_grade(axes, groups, groups[0].held_out)
    marks = [line.get_ydata()[0] for line in axes.lines if len(line.get_ydata()) == 2]
    first = read_metrics(folder)[0]
    np.testing.assert_allclose(marks, [*(first[f"eval/accuracy/{grade}"] for grade in GRADES), first["eval/accuracy"]])


def test_the_phases_of_several_runs_are_stacked(tmp_path):
    runs = load_runs([write_run(tmp_path / method, method) for method in ("hpt", "grpo")])
    axes = Figure().subplots()
    assert draw_phases(axes, runs)
    for row, run in enumerate(runs):
        bars = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == row]
        assert bars[0].get_x() == 0
        ends = [bar.get_x() + bar.get_width() for bar in bars]
        np.testing.assert_allclose([bar.get_x() for bar in bars[1:]], ends[:-1])
        np.testing.assert_allclose(ends[-1], sum(run.phases.values()))
