"""hpt compare: what it prints and writes, which evaluations it finds, and which it refuses to compare."""

import json

import pytest

from hpt.commands.main import main
from hpt.evaluation.compare import Comparison, Pair
from hpt.evaluation.statistics import permutation_test


def write(folder, counts, *, n=4, **changes):
    """An evaluation: right responses by question id."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        {"id": id, "grade": "low" if id < "c" else "high", "prompt": f"{id}?", "answer": id, "n": n, "correct": correct}
        | changes
        for id, correct in counts.items()
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def compare(capsys, *arguments):
    code = main(["compare", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_comparison_is_printed_and_written(tmp_path, capsys):
    a, b = (
        write(tmp_path / "a", {"a": 0, "b": 4, "c": 1, "d": 4}),
        write(tmp_path / "b", {"a": 3, "b": 4, "c": 4, "d": 0}),
    )
    output = tmp_path / "new" / "comparison.json"
    code, out, err = compare(capsys, a, b, "--output", output)
    assert code == 0
    assert str(output) in err
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["low"][1:5] == ["2", "50.0%", "87.5%", "+37.5"]
    assert rows["high"][1:5] == ["2", "62.5%", "50.0%", "-12.5"]
    assert rows["all"][1:5] == ["4", "56.2%", "68.8%", "+12.5"]
    assert rows["all"][-3:] == ["2", "1", f"{permutation_test([3, 0, 3, -4]):.3f}"]
    assert "Newly solved: a, c\nForgotten: d\n" in out
    written = json.loads(output.read_text())
    assert written["all"] == Comparison([Pair("", *each) for each in PAIRS], "majority").numbers()
    assert {grade: numbers["newly_solved"] for grade, numbers in written["grades"].items()} == {"low": 1, "high": 1}
    assert [each["change"] for each in written["per_question"]] == [
        "newly solved",
        "solved",
        "newly solved",
        "forgotten",
    ]
    assert written["per_question"][2]["correct_b"] == 4
    assert (written["a"], written["b"], written["rule"]) == (a, b, "majority")


PAIRS = [("a", "low", 0, 4, 3, 4), ("b", "low", 4, 4, 4, 4), ("c", "high", 1, 4, 4, 4), ("d", "high", 4, 4, 0, 4)]


def test_the_rule_is_chosen(tmp_path, capsys):
    a, b = write(tmp_path / "a", {"a": 0, "b": 4, "c": 1}), write(tmp_path / "b", {"a": 1, "b": 3, "c": 2})
    assert "Newly solved: a\n" in compare(capsys, a, b, "--solved", "any")[1]
    out = compare(capsys, a, b, "--solved", "avg")[1]
    assert "Newly solved: a, c\nForgotten: b\n" in out
    assert "rose, fell" in out


def test_benchmarks_are_compared_by_name(tmp_path, capsys):
    for side, right in (("a", 0), ("b", 4)):
        for name in ("AIME24", "AMC"):
            write(tmp_path / side / name, {"a": right if name == "AMC" else 2, "b": 2})
    code, out, _ = compare(capsys, tmp_path / "a", tmp_path / "b")
    rows = [line.split()[:5] for line in out.splitlines()]
    assert code == 0
    assert ["AIME24", "2", "50.0%", "50.0%", "+0.0"] in rows
    assert ["AMC", "2", "25.0%", "75.0%", "+50.0"] in rows
    assert "Newly solved: AMC a\n" in out
    assert not any(row[:1] in (["low"], ["high"]) for row in rows)


def test_a_runs_evaluation_is_found(tmp_path, capsys):
    a = write(tmp_path / "a", {"a": 0})
    write(tmp_path / "run" / "eval", {"a": 4})
    (tmp_path / "run" / "config.yaml").write_text("steps: 1\n")
    assert "+100.0" in compare(capsys, a, tmp_path / "run")[1]


def write_training(run, **evaluations):
    """A run with evaluations of its training: right responses by question id, by step."""
    (run / "eval").mkdir(parents=True)
    (run / "config.yaml").write_text("steps: 8\n")
    for step, counts in evaluations.items():
        write(run / "eval", counts)
        (run / "eval" / "results.jsonl").rename(run / "eval" / f"step-{int(step[1:]):06d}.jsonl")
    return run


def test_evaluations_of_the_training(tmp_path, capsys):
    run = write_training(tmp_path / "run", s0={"a": 0, "b": 4}, s4={"a": 1, "b": 4}, s8={"a": 4, "b": 1})
    other = write_training(tmp_path / "other", s0={"a": 0, "b": 4}, s6={"a": 4, "b": 4})

    def sides(*arguments):
        code, out, err = compare(capsys, *arguments)
        assert code == 0, err
        return next(line.split()[2:5] for line in out.splitlines() if line.split()[:1] == ["all"])

    assert sides(run) == ["50.0%", "62.5%", "+12.5"]
    assert sides(run, run) == ["62.5%", "62.5%", "+0.0"]
    assert sides(run, other) == ["62.5%", "100.0%", "+37.5"]
    assert sides(run, "--step-a", 4) == ["62.5%", "62.5%", "+0.0"]
    assert sides(run, "--step-b", "4") == ["50.0%", "62.5%", "+12.5"]
    assert sides(run, other, "--step-a", 0, "--step-b", 0) == ["50.0%", "50.0%", "+0.0"]
    assert sides(run / "eval" / "step-000000.jsonl", other) == ["50.0%", "100.0%", "+50.0"]
    out = compare(capsys, run)[1]
    assert "run,step0B:" in "".join(out.split())  # long paths are wrapped
    assert "Newly solved: a\nForgotten: b\n" in out
    write(run / "eval", {"a": 2, "b": 2})  # an evaluation by hpt eval comes first
    assert sides(run, other) == ["50.0%", "100.0%", "+50.0"]


def test_evaluations_of_the_training_that_are_not_there(tmp_path, capsys):
    run = write_training(tmp_path / "run", s0={"a": 0}, s4={"a": 1})
    assert "no evaluation after step 3; it has those after 0, 4" in compare(capsys, run, "--step-a", 3)[2]
    single = write(tmp_path / "single", {"a": 0})
    assert "two evaluations of its training (eval.every), and this has 0; name B" in compare(capsys, single)[2]
    assert "it has none of its training" in compare(capsys, run, single, "--step-b", 4)[2]


def test_a_comparison_fits_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")  # said of a pipe, which has no width
    sides = []
    for side, right in (("a", 0), ("b", 8)):
        for name in ("OlympiadBench", "GPQA-Diamond"):
            write(tmp_path / side / name, {f"q{i}": (right + 3 * i) % 9 for i in range(1172)}, n=8)
        sides.append(tmp_path / side)
    out = compare(capsys, *sides)[1]
    table = out[: out.index("Newly solved")].splitlines()
    assert max(len(line.rstrip()) for line in table if str(tmp_path) not in line) <= 80
    assert "OlympiadBench 1,172" in out
    assert " more\n" in out


# ---- what may not be compared


@pytest.mark.parametrize(
    ("counts", "changes", "words"),
    [
        ({"a": 1, "c": 2}, {}, ["different questions: 1 of 2", "'b'"]),
        ({"a": 1}, {}, ["different questions: 1 of 2", "'b'"]),
        ({"a": 1, "b": 1, "z": 0}, {}, ["different questions: 1 of 3", "'z'"]),
        ({"a": 1, "b": 1}, {"prompt": "another"}, ["2 have another prompt or answer", "'a', 'b'", "--seed"]),
        ({"a": 1, "b": 1}, {"answer": "another"}, ["2 have another prompt or answer", "'a', 'b'"]),
        ({"a": 5, "b": 1}, {}, ["line 1: fields 'correct' and 'n' are 5 and 4; allowed"]),
        ({"a": -1, "b": 1}, {}, ["line 1: fields 'correct' and 'n' are -1 and 4; allowed"]),
        ({"a": 1, "b": 1}, {"n": "4"}, ["'n' are 1 and '4'"]),
        ({"a": 1, "b": 1}, {"id": "a"}, ["line 2: field 'id' is 'a', as in an earlier line"]),
        ({"a": 1, "b": 1}, {"id": [1]}, ["line 1: field 'id' is [1]; allowed: a string or a number"]),
        ({"a": 1, "b": 1}, {"grade": {"x": 1}}, ["line 1: field 'grade' is {'x': 1}; allowed: a string or a number"]),
        ({"a": 1, "b": 1}, {"grade": "\ud800"}, ["line 1: field 'grade' "]),
        ({}, {}, ["holds no questions"]),
    ],
)
def test_unlike_evaluations(tmp_path, capsys, counts, changes, words):
    a, b = write(tmp_path / "a", {"a": 1, "b": 1}), write(tmp_path / "b", counts, **changes)
    code, out, err = compare(capsys, a, b)
    assert (code, out) == (2, "")
    for word in words:
        assert word in err


def test_folders_that_hold_no_evaluation(tmp_path, capsys):
    a = write(tmp_path / "a", {"a": 1})
    assert "no such folder" in compare(capsys, a, tmp_path / "nothing")[2]
    (tmp_path / "empty").mkdir()
    assert "there is no results.jsonl here" in compare(capsys, a, tmp_path / "empty")[2]
    write(tmp_path / "several" / "AMC", {"a": 1})
    assert "different benchmarks" in compare(capsys, a, tmp_path / "several")[2]
    write(tmp_path / "several", {"a": 1})
    assert "holds an evaluation and folders of others (AMC)" in compare(capsys, a, tmp_path / "several")[2]
    (tmp_path / "several" / "AMC" / "results.jsonl").write_text('{"id": "a"}\n')
    err = compare(capsys, tmp_path / "several" / "AMC", a)[2]
    assert "line 1: field 'grade' is missing" in err


def test_any_needs_as_many_responses(tmp_path, capsys):
    a, b = write(tmp_path / "a", {"a": 1}, n=8), write(tmp_path / "b", {"a": 1}, n=32)
    code, _, err = compare(capsys, a, b, "--solved", "any")
    assert code == 2
    assert "8 responses in A and 32 in B" in err
    assert compare(capsys, a, b)[0] == 0
