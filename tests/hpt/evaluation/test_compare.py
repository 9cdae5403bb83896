"""Two evaluations against each other: the tests by enumeration, the counts by hand, what may not be compared."""

import json
import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpt.commands.main import main
from hpt.evaluation.compare import Comparison, Pair
from hpt.evaluation.significance import MAX_STEPS, permutation_test, sign_test

# ---- significance


@given(st.integers(0, 6), st.integers(0, 6))
def test_the_sign_test_counts_the_coin_flips(ups, downs):
    uneven = [abs(sum(flips)) >= abs(ups - downs) for flips in product((-1, 1), repeat=ups + downs)]
    assert sign_test(ups, downs) == sign_test(downs, ups) == np.mean(uneven)


def test_the_sign_test_at_the_ends():
    assert sign_test(0, 0) == 1.0
    assert sign_test(1000, 0) == 2 * 0.5**1000
    assert sign_test(2000, 2000) == 1.0


@given(st.lists(st.integers(-9, 9), max_size=10))
def test_the_permutation_test_counts_all_swaps(differences):
    observed = abs(sum(differences))
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    expected = np.mean([each >= observed for each in sums]) if differences else 1.0
    assert permutation_test(differences) == pytest.approx(expected, rel=1e-12)


def test_the_permutation_test_of_single_answers_is_the_sign_test():
    assert permutation_test([1] * 30 + [-1] * 12 + [0] * 99) == pytest.approx(sign_test(30, 12), rel=1e-10)


def test_the_permutation_test_of_many_questions_agrees_with_sampled_swaps():
    generator = np.random.default_rng(0)
    differences = generator.integers(-32, 33, size=300) + generator.integers(0, 5, size=300)
    swaps = generator.choice([-1, 1], size=(20_000, 300)) @ differences
    sampled = np.mean(np.abs(swaps) >= abs(differences.sum()))
    exact = permutation_test(differences.tolist())
    assert 0.001 < exact < 0.5
    assert exact == pytest.approx(sampled, abs=4 * math.sqrt(exact / 20_000))


def test_the_permutation_test_does_not_depend_on_the_unit_and_bounds_its_memory():
    differences = np.random.default_rng(1).integers(-8, 10, size=60)
    assert permutation_test((differences * 7_919).tolist()) == permutation_test(differences.tolist())
    fine = differences * 1_000_003 + np.arange(60)  # no common unit: 60 questions in 2.5e8 steps
    assert np.abs(fine).sum() > 100 * MAX_STEPS
    # Rounding breaks ties that are none in the coarse unit, so it can only lose them.
    assert permutation_test(fine.tolist()) == pytest.approx(permutation_test(differences.tolist()), rel=0.1)


def test_the_permutation_test_is_level_where_nothing_differs():
    generator = np.random.default_rng(2)
    rejected = np.mean([permutation_test(generator.integers(-8, 9, size=40).tolist()) < 0.05 for _ in range(400)])
    assert rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert rejected >= 0.01


# ---- what has changed


@pytest.mark.parametrize(
    ("a", "b", "majority", "any", "avg"),
    [
        ((0, 8), (5, 8), "newly solved", "newly solved", "newly solved"),
        ((0, 8), (1, 8), "unsolved", "newly solved", "newly solved"),
        ((4, 8), (5, 8), "newly solved", "solved", "newly solved"),  # half is no majority
        ((8, 8), (4, 8), "forgotten", "solved", "forgotten"),
        ((1, 8), (0, 8), "unsolved", "forgotten", "forgotten"),
        ((2, 8), (2, 8), "unsolved", "solved", "same"),
        ((7, 8), (8, 8), "solved", "solved", "newly solved"),
        ((2, 8), (8, 32), "unsolved", "solved", "same"),
    ],
)
def test_newly_solved_and_forgotten(a, b, majority, any, avg):
    pair = Pair("", "q", None, *a, *b)
    assert [pair.change(rule) for rule in ("majority", "any", "avg")] == [majority, any, avg]


def test_numbers_of_a_comparison():
    pairs = [Pair("", f"{i}", None, a, 4, b, 4) for i, (a, b) in enumerate([(0, 4), (0, 3), (4, 1), (2, 2), (1, 2)])]
    comparison = Comparison(pairs, "majority")
    numbers = comparison.numbers()
    assert (numbers["accuracy_a"], numbers["accuracy_b"]) == (7 / 20, 12 / 20)
    assert numbers["difference"]["mean"] == pytest.approx(0.25)
    assert numbers["difference"]["low"] < 0 < numbers["difference"]["high"]
    assert (numbers["newly_solved"], numbers["forgotten"]) == (2, 1)
    assert numbers["p_of_changes"] == sign_test(2, 1) == 1.0
    assert numbers["p_of_accuracy"] == permutation_test([4, 3, -3, 0, 1])


# ---- the command


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
        ({"a": 1, "b": 1}, {"n": "4"}, ["'n' are 1 and '4'"]),
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
