"""Metrics of several ranks, and what reaches which number."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import Decision
from hpt.method.rows import Row, Signal
from hpt.optim.engine import Update
from hpt.rollout import Rollout
from hpt.training.metrics import RankStats, StepStats, over_ranks
from hpt.training.rollout_records import rollout_records
from hpt.verify import Verdict


def test_every_number_of_the_ranks_is_added_up_but_the_largest_mismatch() -> None:
    names = [number.name for number in fields(RankStats)]
    first, second = ({name: scale * (place + 1) for place, name in enumerate(names)} for scale in (1, 10))
    combined = over_ranks([RankStats(**first), RankStats(**second)])
    for name in names:
        expected = max(first[name], second[name]) if name == "mismatch_max" else first[name] + second[name]
        assert getattr(combined, name) == expected, name


def test_rows_are_counted_by_whether_they_reach_the_model() -> None:
    stats = StepStats()
    rows = [
        Row([1, 2], 1, Signal.RL, 0.5, advantage=1.0),
        Row([1, 2], 1, Signal.RL, 0.5, advantage=0.0),
        Row([1, 2], 1, Signal.RL, 0.5, advantage=[0.0]),
        Row([1, 2], 1, Signal.RL, 0.5, advantage=0.0, regularised=True),
        Row([1, 2], 1, Signal.SFT, 0.0),
        Row([1, 2], 1, Signal.SFT, 0.5),
        Row([1, 2], 1, Signal.OFF_POLICY, 0.5, advantage=-0.5),
    ]
    stats.add_update(rows, Update(1.0, 0.1, skipped=False))
    assert (stats.rows, stats.rows_skipped) == (4, 3)
    assert dict(stats.demonstrations) == {Signal.SFT: 1, Signal.OFF_POLICY: 1}


def test_the_mismatch_leaves_out_what_the_engine_could_not_tell() -> None:
    stats = RankStats()
    nan = float("nan")
    row = Row([1, 2, 3, 4], 1, Signal.RL, 1.0, rollout_logprobs=[-1.0, nan, -2.0], old_logprobs=[-1.5, -9.0, -2.0])
    demonstration = Row([1, 2], 1, Signal.SFT, 1.0, rollout_logprobs=[-1.0], old_logprobs=[-5.0])
    stats.add_mismatch_of_rows([row, demonstration])
    assert (stats.mismatch_tokens, stats.mismatch_abs, stats.mismatch_max) == (2, 0.5, 0.5)
    assert stats.mismatch_kl == pytest.approx(torch.expm1(torch.tensor(-0.5)).item() + 0.5)


def test_the_record_of_a_question_has_what_it_was_trained_with() -> None:
    question = Question("q", "1 + 1 = ?", "2", demonstration="It is 2.")
    right = Rollout([5, 6], [-0.1, -0.2], "stop", "2", Verdict("correct", 1.0), advantage=0.5)
    long = Rollout([5] * 3, [-0.1] * 3, "length", "1", Verdict("incorrect", 0.0))
    long.overlong_penalty, long.advantage = -0.25, [1.0, 2.0, 6.0]
    rl = Experience(question, [1], [right, long], Decision(alpha=1.0, beta=0.0, off=0.0))
    sft = Experience(question, [1], [], Decision(alpha=0.0, beta=1.0, off=0.0))
    by_rl, by_sft = rollout_records(3, [rl, sft])
    assert (by_rl["total_rewards"], by_rl["advantages"]) == ([1.0, -0.25], [0.5, 3.0])
    assert "demonstration" not in by_rl
    assert by_sft["demonstration"] == "It is 2."
