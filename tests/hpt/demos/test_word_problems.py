"""The word problems: answers are right, wrong demonstrations are wrong, and few questions have a demonstration."""

from __future__ import annotations

import re

import pytest

from hpt.demos import word_problems
from hpt.demos.word_problems import GRADES, UNTRAINED, Problem, make_questions


def test_a_slip_makes_one_result_wrong_and_is_carried_to_the_answer() -> None:
    problem = Problem("", ((3, "*", 4), (7, "+", None), (None, "-", 5)))
    assert problem.worked() == (r"3 * 4 = 12, 7 + 12 = 19, 19 - 5 = 14. \boxed{14}", 14)
    assert problem.worked(slip=0) == (r"3 * 4 = 13, 7 + 13 = 20, 20 - 5 = 15. \boxed{15}", 15)
    assert problem.worked(slip=2) == (r"3 * 4 = 12, 7 + 12 = 19, 19 - 5 = 15. \boxed{15}", 15)


def test_questions_are_apart_and_no_training_question_has_the_untrained_grade() -> None:
    train, held_out = make_questions(0)
    assert make_questions(0) == (train, held_out) != make_questions(1)
    for field in ("id", "prompt"):
        assert len({question[field] for question in train + held_out}) == len(train + held_out)
    assert {question["grade"] for question in held_out} == set(GRADES)
    assert {question["grade"] for question in train} == set(GRADES) - {UNTRAINED}
    for grade in set(GRADES) - {UNTRAINED}:
        with_one = ["demonstration" in question for question in train if question["grade"] == grade]
        assert (sum(with_one), len(with_one)) == (16, 48)


@pytest.mark.parametrize("seed", range(5))
def test_the_numbers_of_a_question_are_those_of_its_demonstration(seed: int) -> None:
    _, held_out = make_questions(seed)
    for question in held_out:
        work = question["demonstration"]
        assert re.findall(r"\\boxed\{(\d+)\}$", work) == [question["answer"]]
        results = []
        used = []
        for a, sign, b, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", work):
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(result)
            used += [a, b]
            results.append(result)
        for result in results[:-1]:
            used.remove(result)
        assert sorted(used) == sorted(re.findall(r"\d+", question["prompt"]))


def test_wrong_demonstrations_are_wrong_and_as_many_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_problems, "TRAIN_QUESTIONS_PER_GRADE", 500)
    monkeypatch.setattr(word_problems, "DEMONSTRATIONS_PER_GRADE", 500)
    clean, held_out = make_questions(0)
    wrong, same = make_questions(0, wrong=word_problems.WRONG)
    assert held_out == same
    assert [question["answer"] for question in clean] == [question["answer"] for question in wrong]
    refused = [q for q in wrong if not q["demonstration"].endswith(rf"\boxed{{{q['answer']}}}")]
    assert len(refused) == sum(a != b for a, b in zip(clean, wrong, strict=True))
    # 2,000 draws at 0.4: five standard deviations are 0.055
    assert len(refused) / len(wrong) == pytest.approx(word_problems.WRONG, abs=0.055)
