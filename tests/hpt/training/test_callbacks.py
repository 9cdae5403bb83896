"""What methods add to a step, where it differs between ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from thread_ranks import on_ranks

from hpt.method.rows import Row, Signal
from hpt.support.distributed import World
from hpt.training.callbacks import OldLogprobs
from hpt.training.metrics import StepStats


def test_the_mismatch_of_a_row_is_counted_once_over_ranks() -> None:
    """Every rank has the log-probabilities of all rows, and the counts of ranks are added."""

    def counted(world: World) -> tuple[int, Any]:
        row = Row([1, 2, 3], 1, Signal.RL, weight=1.0, rollout_logprobs=[-1.0, -2.0])
        batches = SimpleNamespace(world=world, measure=lambda rows, _: [(row, [-1.0, -2.5]) for row in rows])
        stats = StepStats()
        OldLogprobs(SimpleNamespace(logprobs=None), batches).before_updates([[row]], stats)  # type: ignore[arg-type]
        return stats.counts.mismatch_tokens, row.old_logprobs

    assert on_ranks(2, counted) == [(2, [-1.0, -2.5]), (0, [-1.0, -2.5])]
