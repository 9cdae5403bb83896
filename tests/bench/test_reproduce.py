"""`bench reproduce`: questions and slips of its task, its records, and the numbers in its tables."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import runs
from bench.reproduction import figure
from bench.reproduction.outcomes import Answered, Outcome, Trial, by_gamma, by_method, read_records, write_records
from bench.reproduction.tables import report
from hpt.demos.addition import Sum, make_questions
from hpt.demos.sums import GRADES, WRONG


def test_a_slip_makes_one_column_wrong_and_is_carried_to_the_answer() -> None:
    question = Sum((347, 285))
    assert question.worked(slip=0) == "347+285\n7+5+0=13\n4+8+1=13\n3+2+1=6\n\\boxed{633}"
    assert question.worked(slip=1) == "347+285\n7+5+0=12\n4+8+1=14\n3+2+1=6\n\\boxed{642}"
    assert question.worked(slip=2) == "347+285\n7+5+0=12\n4+8+1=13\n3+2+1=7\n\\boxed{732}"
    assert Sum((4, 5)).worked(slip=0) == "4+5\n4+5+0=8\n\\boxed{8}"  # 9 + 1 would carry


def test_wrong_demonstrations_are_wrong_and_as_many_as_said() -> None:
    train, held_out = make_questions(0, train=500, held_out=50, grades=GRADES, wrong=WRONG)
    clean, same = make_questions(0, train=500, held_out=50, grades=GRADES)
    assert held_out == same
    changed = 0
    for ours, theirs in zip(train, clean, strict=True):
        assert {k: v for k, v in ours.items() if k != "demonstration"} == {
            k: v for k, v in theirs.items() if k != "demonstration"
        }
        boxed = re.findall(r"\\boxed\{(\d+)\}$", ours["demonstration"])
        assert (boxed == [ours["answer"]]) == (ours["demonstration"] == theirs["demonstration"])
        changed += ours["demonstration"] != theirs["demonstration"]
    # 2,500 draws at 0.4: five standard deviations are 0.049
    assert changed / len(train) == pytest.approx(WRONG, abs=0.05)


def outcome(trial: Trial, *correct: int, accuracy: float = 0.5) -> Outcome:
    line = {"step": 1, "eval/accuracy": accuracy, "time/step": 2.0, "gate/sft": 1, "gate/questions": 4}
    answers = [Answered(f"q{i}", "easy" if i % 2 else "hard", right, 4) for i, right in enumerate(correct)]
    return Outcome(trial, [line, {**line, "step": 2}] if trial.method != "start" else [], answers)


@pytest.fixture
def outcomes() -> list[Outcome]:
    return [
        outcome(Trial("hpt", (1e-4,), 9), accuracy=0.25),
        outcome(Trial("start", (), 0), 0, 2),
        outcome(Trial("hpt", (1e-4,), 0), 4, 4),
        outcome(Trial("sft", (1e-4,), 0), 1, 3),
        outcome(Trial("hpt", (1e-4,), 1), 0, 4),
        outcome(Trial("sft", (1e-4,), 1), 2, 2),
        outcome(Trial("sft", (1e-4,), 0, "wrong"), 0, 1),
        outcome(Trial("sft-then-grpo", (1e-4, 5e-5), 0, "wrong"), 4, 4),
        outcome(Trial("hpt", (1e-4,), 0, gamma=0.5), 3, 3),
    ]


def test_records_come_back_as_they_were(outcomes: list[Outcome], tmp_path: Path) -> None:
    write_records(tmp_path, outcomes, "two cores")
    first = (tmp_path / "metrics.jsonl.gz").read_bytes()
    read, conditions = read_records(tmp_path)
    assert {o.trial: o for o in read} == {o.trial: o for o in outcomes}
    assert conditions == "two cores"
    write_records(tmp_path, outcomes, "two cores")
    assert (tmp_path / "metrics.jsonl.gz").read_bytes() == first


def test_tables_hold_means_over_seeds_and_paired_differences(outcomes: list[Outcome]) -> None:
    assert {k: len(v) for k, v in by_method(outcomes, "clean").items()} == {"start": 1, "hpt": 2, "sft": 2}
    assert list(by_gamma(outcomes)) == [0.0, 0.5]
    text = report(outcomes)
    # seed 0: 8 of 8, seed 1: 4 of 8; pass@4 is 1 and 1/2; four seconds per run
    assert "| `hpt` | 0.0001 | 0.750 (0.500 to 1.000) | 0.50 | 1.00 | 0.75 | 4 |" in text
    assert "| start model |  | 0.250 (0.250 to 0.250) | 0.00 | 0.50 | 0.50 |  |" in text
    assert "By mean accuracy: `hpt` 0.750, `sft` 0.500, the start model 0.250." in text
    # against sft: +0.5 at seed 0, 0 at seed 1; by question +3 +1 -2 +2 of 4: of 16 ways to swap, 8 are as far as 4
    assert "| `sft` | +0.250 | 1 of 2 | 0.5 |" in text
    assert "| 0.5 | 0.750 (0.750 to 0.750) | 25% | 4 |" in text
    assert "| `hpt` | 0.250 |" in text
    assert "| `sft-then-grpo` | 0.0001, 5e-05 | 1.000" in text


def test_the_figure_is_drawn_from_incomplete_outcomes(outcomes: list[Outcome], tmp_path: Path) -> None:
    figure.draw(outcomes, tmp_path / "summary.png")
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_outlives_its_benchmark_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = f"import pathlib, time; time.sleep(0.5); pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    with runs.hold(tmp_path):
        process = subprocess.Popen([sys.executable, "-c", work], close_fds=False)
    with runs.hold(tmp_path):
        assert (tmp_path / "done").exists()
    assert process.wait(10) == 0
    assert f"waiting for the runs in {tmp_path}" in capsys.readouterr().err
