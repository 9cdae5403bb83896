"""Metrics of several ranks, and what reaches which number."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields
from typing import Any

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
from hpt.verify import GroupRewards, Verdict
from hpt.verify.verdict import Status


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
        Row([1, 2], 1, Signal.SFT, 0.25),
        Row([1, 2], 1, Signal.OFF_POLICY, 0.5, advantage=-0.5),
    ]
    stats.add_update(rows, Update(1.0, 0.1, skipped=False))
    assert (stats.rows, stats.rows_skipped) == (5, 3)
    assert dict(stats.demonstrations) == {Signal.SFT: 2, Signal.OFF_POLICY: 1}


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


def rollout(tokens: int, logprob: float, status: Status, reward: float | None, **known: Any) -> Rollout:
    verdict = Verdict(status, float(status == "correct"))
    return Rollout([1] * tokens, [logprob] * tokens, "stop", verdict=verdict, rewards={"f": reward}, **known)


def test_every_number_of_a_step() -> None:
    by_rl = Experience(Question("a", "p", "a"), [1], decision=Decision(alpha=1.0, beta=0.5, off=0.25))
    by_rl.rollouts = [
        rollout(3, -0.5, "correct", 2.0, earned=4.0, overlong_penalty=-0.5),
        rollout(1, -2.0, "incorrect", None, earned=1.0, overlong_penalty=0.0),
    ]
    by_rl.rollouts[1].finish_reason = "length"
    by_rl.rewards = GroupRewards({"f": [2.0, None]}, failures={"f": 1}, metrics={"m": [1.0, 2.0]})
    by_sft = Experience(Question("b", "p", "a"), [1], decision=Decision(alpha=0.0, beta=0.5, off=0.0))
    by_sft.rollouts = [rollout(2, -1.0, "unparsable", 5.0, earned=0.0)]
    by_sft.rewards = GroupRewards({"f": [5.0]}, failures={"f": 2}, metrics={"m": [6.0], "other": [8.0]})
    off_policy = Experience(Question("c", "p", "a"), [1], decision=Decision(alpha=0.0, beta=0.0, off=1.0))
    off_policy.rollouts = [rollout(4, -0.25, "timeout", 11.0, earned=None)]
    off_policy.rewards = GroupRewards({"f": [11.0]}, failures={"f": 0})
    counts = RankStats(
        loss=8.0, tokens=10, entropy=3.0, rl_tokens=8, clipped=2, kl=0.75, kl_tokens=3,
        mismatch_kl=0.5, mismatch_abs=1.5, mismatch_max=0.75, mismatch_tokens=5,
    )  # fmt: skip
    stats = StepStats(counts, rows=6, rows_skipped=1, demonstrations=Counter({Signal.SFT: 1, Signal.OFF_POLICY: 2}))
    stats.importance, stats.importance_truncated, stats.importance_tokens = 7.5, 1, 5
    stats.updates = [Update(1.0, 0.1, skipped=False), Update(4.0, 0.2, skipped=True)]
    stats.add_critic_update(0.5, Update(2.0, 0.1, skipped=False))
    stats.add_critic_update(0.25, Update(5.0, 0.1, skipped=False))
    assert step_metrics([by_rl, by_sft, off_policy], stats, {"step": 4.0, "train": 1.5}) == {
        "gate/sft_share": 1 / 3, "gate/sft": 1, "gate/questions": 3, "gate/off_policy": 1,
        "reward/mean": 5 / 3, "reward/sum": 5.0, "reward/count": 3,
        "reward/f/mean": 6.0, "reward/f/sum": 18.0, "reward/f/count": 3, "reward/f/std": math.sqrt(21),
        "reward/f/failures": 3,
        "logged/m/mean": 3.0, "logged/m/sum": 9.0, "logged/m/count": 3,
        "logged/other/mean": 8.0, "logged/other/sum": 8.0, "logged/other/count": 1,
        "overlong/mean": -0.25, "overlong/sum": -0.5, "overlong/count": 2,
        "gate/none": 2, "gate/some": 1, "gate/all": 0,
        "verify/correct": 1, "verify/incorrect": 1, "verify/unparsable": 1, "verify/timeout": 1,
        "response/length": 2.5, "response/length_sum": 10, "response/count": 4, "response/truncated": 1,
        "entropy/mean": 0.65, "entropy/sum": 6.5, "entropy/count": 10,
        "train/loss": 4.0, "train/grad_norm": 2.5, "train/lr": 0.2, "train/updates": 2, "train/skipped": 1,
        "train/rows": 6, "train/rows_skipped": 1, "train/tokens": 10,
        "train/rows_sft": 1, "train/rows_off_policy": 2,
        "critic/loss": 0.375, "critic/grad_norm": 3.5,
        "clip/share": 0.25, "clip/count": 2, "clip/tokens": 8,
        "kl/mean": 0.25, "kl/sum": 0.75, "kl/count": 3,
        "rollout/mismatch_kl": 0.1, "rollout/mismatch_kl_sum": 0.5,
        "rollout/mismatch_abs": 0.3, "rollout/mismatch_abs_sum": 1.5,
        "rollout/mismatch_max": 0.75, "rollout/mismatch_tokens": 5,
        "tis/mean": 1.5, "tis/sum": 7.5, "tis/count": 5, "tis/cut": 1,
        "throughput/tokens_per_second": 5.0, "time/step": 4.0, "time/train": 1.5,
    }  # fmt: skip


def test_a_step_without_rollouts_has_no_numbers_of_them() -> None:
    imitated = Experience(Question("q", "p", "a"), [1], decision=Decision(alpha=0.0, beta=1.0, off=0.0))
    counts = RankStats(loss=3.0, tokens=8, entropy=2.0)
    stats = StepStats(counts, rows=1, updates=[Update(1.0, 0.1, skipped=False)])
    training = {
        "train/loss": 3.0, "train/grad_norm": 1.0, "train/lr": 0.1, "train/updates": 1, "train/skipped": 0,
        "train/rows": 1, "train/rows_skipped": 0,
    }  # fmt: skip
    gate = {"gate/sft_share": 1.0, "gate/sft": 1, "gate/questions": 1, "gate/off_policy": 0}
    entropy = {"entropy/mean": 0.25, "entropy/sum": 2.0, "entropy/count": 8}
    rest = {"train/tokens": 8, "throughput/tokens_per_second": 4.0, "time/step": 2.0}
    assert step_metrics([imitated], stats, {"step": 2.0}) == gate | entropy | training | rest
    stats.counts = RankStats(loss=3.0)
    rest |= {"train/tokens": 0, "throughput/tokens_per_second": 0.0}
    assert step_metrics([imitated], stats, {"step": 2.0}) == gate | training | rest


def test_a_reward_that_applies_once_or_never_has_no_spread() -> None:
    def metrics(*values: float | None) -> dict[str, float]:
        found = Experience(Question("q", "p", "a"), [1], [rollout(1, -1.0, "correct", value) for value in values])
        found.rewards = GroupRewards({"f": [*values]}, failures={"f": 0})
        stats = StepStats(updates=[Update(1.0, 0.1, skipped=False)])
        return {name: value for name, value in step_metrics([found], stats, {"step": 1.0}).items() if "/f/" in name}

    never = {"reward/f/sum": 0.0, "reward/f/count": 0, "reward/f/failures": 0}
    assert metrics(None, None) == never
    once = {"reward/f/mean": 3.0, "reward/f/sum": 3.0, "reward/f/count": 1, "reward/f/std": 0.0}
    assert metrics(None, 3.0) == never | once
    assert metrics(1.0, 3.0)["reward/f/std"] == math.sqrt(2)


def test_what_a_batch_of_tokens_counts() -> None:
    """Of 5 tokens: an SFT row of two and an RL row of three, the last of which is not evaluated."""
    rows = [
        Row([1, 2, 3], 1, Signal.SFT, 1.0),
        Row([1, 2, 3, 4], 1, Signal.RL, 1.0, advantage=1.0, rollout_logprobs=[-1.0, -2.0, -3.0]),
    ]
    (batch,) = micro_batches(rows, 10, packed=False)
    rl = batch.objective_index == Signal.RL
    last = torch.arange(5) == rl.nonzero()[-1]
    output = upge.PolicyLossOutput(
        torch.tensor(1.5), torch.zeros(5), torch.where(rl, -1.5, -0.5), torch.full((5,), 0.25), torch.ones(5),
        torch.zeros(5), stable=last | ~rl, evaluated=~last, top1=rl,
    )  # fmt: skip
    stats = StepStats()
    stats.add_batch(batch, output)
    k3 = (math.expm1(-0.5) + 0.5) + (math.expm1(0.5) - 0.5)
    counts = stats.counts
    assert (counts.loss, counts.tokens, counts.entropy, counts.rl_tokens, counts.clipped) == (1.5, 5, 1.0, 3, 2)
    assert (counts.kl, counts.kl_tokens) == (0.0, 0)
    assert (counts.mismatch_abs, counts.mismatch_max, counts.mismatch_tokens) == (1.0, 0.5, 2)
    assert counts.mismatch_kl == pytest.approx(k3, rel=1e-12)


def test_the_kl_of_a_batch_is_over_its_evaluated_tokens() -> None:
    row = Row([1, 2, 3, 4], 1, Signal.RL, 1.0, advantage=1.0, ref_logprobs=[-1.0, -0.75, -9.0])
    (batch,) = micro_batches([row], 10, packed=False)
    zeros, evaluated = torch.zeros(3), torch.tensor([True, True, False])
    output = upge.PolicyLossOutput(
        torch.tensor(1.5), zeros, torch.tensor([-0.5, -1.0, 0.0]), zeros, 1 + zeros, zeros, evaluated, evaluated,
        evaluated,
    )  # fmt: skip
    stats = StepStats()
    stats.add_batch(batch, output)
    assert (stats.counts.kl_tokens, stats.counts.tokens, stats.counts.loss) == (2, 3, 1.5)
    assert stats.counts.kl == pytest.approx(math.expm1(-0.5) + 0.5 + math.expm1(0.25) - 0.25, rel=1e-12)


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
