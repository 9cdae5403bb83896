"""Metrics of several ranks, and what reaches which number."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
import upge

from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import Decision
from hpt.method.micro_batches import micro_batches
from hpt.method.rows import Row, Signal
from hpt.optim.engine import Update
from hpt.rollout import Rollout
from hpt.training.metrics import RankStats, StepStats, over_ranks, step_metrics
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
    assert stats.mismatch_kl == pytest.approx(math.expm1(-0.5) + 0.5, rel=1e-15)  # not in single precision


def test_the_mismatch_is_of_the_first_update_and_sums_are_in_double_precision() -> None:
    """Later updates have other weights than the engine had; 2^24 + 1 is no number of single precision."""
    row = Row([1, 2, 3], 1, Signal.RL, 1.0, advantage=1.0, rollout_logprobs=[-1.0, -2.0])
    (batch,) = micro_batches([row], 10, packed=False)
    zeros, true = torch.zeros(2), torch.ones(2, dtype=torch.bool)
    stats = StepStats()
    for loss, logprobs in ((2.0**24, [-1.5, -2.0]), (1.0, [-4.0, -9.0])):
        output = upge.PolicyLossOutput(
            torch.tensor(loss), zeros, torch.tensor(logprobs), zeros, 1 + zeros, zeros, true, true, true
        )
        stats.add_batch(batch, output)
        stats.add_update([row], Update(1.0, 0.1, skipped=False))
    counts = stats.counts
    assert (counts.mismatch_tokens, counts.mismatch_abs, counts.mismatch_max) == (2, 0.5, 0.5)
    assert (counts.loss, counts.tokens) == (2.0**24 + 1, 4)


def test_partial_credit_is_not_solved() -> None:
    def experience(*scores: float) -> Experience:
        verdicts = [Verdict("correct" if score == 1 else "incorrect", score) for score in scores]
        rollouts = [Rollout([1], [0.0], "stop", "", verdict) for verdict in verdicts]
        return Experience(Question("q", "p", "a"), [1], rollouts, Decision(alpha=1.0, beta=0.0, off=0.0))

    stats = StepStats(updates=[Update(1.0, 0.1, skipped=False)])
    metrics = step_metrics([experience(0.5, 0.9), experience(1.0, 0.5), experience(1.0, 1.0)], stats, {"step": 1.0})
    counted = {
        key: metrics[key] for key in ("gate/none", "gate/some", "gate/all", "verify/correct", "verify/incorrect")
    }
    assert list(counted.values()) == [1, 1, 1, 3, 3]


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
