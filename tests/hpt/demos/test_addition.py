"""hpt.demos.addition: correct demonstrations, every grade, and held-out sums that are never trained on."""

from __future__ import annotations

import itertools
import random
import re

from hpt.demos.addition import GRADES, NEW, Sum, make_questions, pairs


def test_a_demonstration_adds_column_by_column() -> None:
    question = Sum((347, 285), NEW)
    assert (question.prompt, question.answer) == ("347&285=", "632")
    assert question.demonstration == "347+285\n7+5+0=12\n4+8+1=13\n3+2+1=6\n\\boxed{632}"


def test_demonstrations_are_right_and_questions_of_every_grade() -> None:
    train, held_out = make_questions(seed=3, train=100, held_out=64)
    assert make_questions(seed=3, train=100, held_out=64) == (train, held_out)
    assert make_questions(seed=4, train=100, held_out=64) != (train, held_out)
    for questions, count in ((train, 100), (held_out, 64)):
        assert {g: sum(q["grade"] == g for q in questions) for g in GRADES} == dict.fromkeys(GRADES, count)
        assert len({q["id"] for q in questions}) == len(questions)
    for question in train + held_out:
        digits, sign = GRADES[question["grade"]]
        a, b = question["prompt"].rstrip("=").split(sign)
        assert len(a) == len(b) == digits
        assert question["answer"] == str(int(a) + int(b))
        assert re.findall(r"\\boxed\{(\d+)\}$", question["demonstration"]) == [question["answer"]]
        columns = [(eval(left), int(right)) for left, right in re.findall(r"(.+)=(.+)", question["demonstration"])]
        assert len(columns) == digits
        assert all(left == right for left, right in columns)


def test_no_held_out_terms_are_trained_on_under_any_sign() -> None:
    train, held_out = make_questions(seed=0, train=400, held_out=64)
    trained, unseen = ({q["prompt"].replace(NEW, "+") for q in questions} for questions in (train, held_out))
    assert len(trained) == len(train)
    assert len(unseen) == len(held_out)
    assert not trained & unseen


def test_pairs_have_their_digits() -> None:
    for digits, low, high in ((1, 0, 9), (2, 10, 99), (3, 100, 999)):
        drawn = list(itertools.islice(pairs(digits, random.Random(0)), 20_000))
        assert {min(map(min, drawn)), max(map(max, drawn))} == {low, high}
