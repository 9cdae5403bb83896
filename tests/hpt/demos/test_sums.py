"""The recipe `sums`: demonstrations with a slip."""

from __future__ import annotations

import re

import pytest

from hpt.demos import sums
from hpt.demos.addition import Sum, make_questions


def test_a_slip_makes_one_column_wrong_and_is_carried_to_the_answer() -> None:
    question = Sum((347, 285))
    assert question.worked(slip=0) == "347+285\n7+5+0=13\n4+8+1=13\n3+2+1=6\n\\boxed{633}"
    assert question.worked(slip=1) == "347+285\n7+5+0=12\n4+8+1=14\n3+2+1=6\n\\boxed{642}"
    assert question.worked(slip=2) == "347+285\n7+5+0=12\n4+8+1=13\n3+2+1=7\n\\boxed{732}"
    assert Sum((4, 5)).worked(slip=0) == "4+5\n4+5+0=8\n\\boxed{8}"  # 9 + 1 would carry


def test_wrong_demonstrations_are_wrong_and_as_many_as_said() -> None:
    train, held_out = make_questions(0, train=500, held_out=50, grades=sums.GRADES, wrong=sums.WRONG)
    clean, same = make_questions(0, train=500, held_out=50, grades=sums.GRADES)
    assert held_out == same
    changed = 0
    for ours, theirs in zip(train, clean, strict=True):
        assert {k: v for k, v in ours.items() if k != "demonstration"} == {
            k: v for k, v in theirs.items() if k != "demonstration"
        }
        boxed = re.findall(r"\\boxed\{(\d+)\}$", ours["demonstration"])
        assert (boxed == [ours["answer"]]) == (ours["demonstration"] == theirs["demonstration"])
        changed += ours["demonstration"] != theirs["demonstration"]
    # 2,000 draws at 0.4: five standard deviations are 0.055
    assert changed / len(train) == pytest.approx(sums.WRONG, abs=0.055)
