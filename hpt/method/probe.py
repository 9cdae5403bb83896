"""Probing (`rollout.probe: k`): a question gets k rollouts first, and all n only while the gate's decision is open.

Which questions go on. Scores are in [0, 1]. With c the sum of the first k, the mean P of all n will be in
[c/n, (c + n - k)/n]. The gates that go with probing are monotone in P: where they decide the same at both ends they
decide so for every outcome, and the question stops. The mean of the k, c/k, lies in that interval, too, so the gate
reads the mean of what was sampled, and every decision is the one that n rollouts would have led to. A question without
a demonstration goes to RL in any case, and stops.

What RL trains on. The estimate of every probed question, stopped or not, comes from its first k rollouts alone. Those
that a question goes on for inform the gate and are not trained on. This leaves the expectation as it is. Let U_n be the
policy gradient of a question from n rollouts. With the leave-one-out baseline it is the mean over all pairs of
(R_i - R_j)(g_i - g_j)/2, with g the gradient of a rollout's log-probability, so it is the mean of U_k over all choices
of k rollouts; with no baseline likewise. The gate's decision D, 0 or 1, does not depend on the order of the n rollouts,
and they are exchangeable, so D U_k has the same expectation for every choice of k, the first k included:

    E[D U_k(first k)] = E[D U_n].

Only the variance changes: it is that of k rollouts. With rl.advantage "mean" the expectation of m rollouts is
(m - 1)/m of the leave-one-out one, so advantages of a probe are multiplied by [(n - 1)/n] / [(k - 1)/k].

Why not train on all n where a question went on: it goes on because of what the first k earned, so their number would
depend on the rewards. Take the rule "go on while the k have equal rewards, then train on all n", rewards of 0 and 1
with probability q = 1 - p and p, and G the true gradient. The expectation is not G but G (1 + c(p)), with

    c(p) = k (n - k) / (n (n - 1)) (p^(k-1) + q^(k-1)) + (n - k)(n - k - 1) / (n (n - 1)) (p^k + q^k):

questions near p = 0 and p = 1 would count up to 1 + (n - k)/n times, 1.5 times with 4 of 8.

What does depend on nothing of this step is how often a question was solved at its last visit. One that went to its
demonstration then would most likely go on, so it gets n rollouts at once and trains on all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal, cast

from hpt.config.schema import Config
from hpt.method.experience import Experience
from hpt.method.gate import Gate

Solved = Literal["never", "sometimes", "always"]
"""How a visit to a question ended. "never": nothing was right, or the gate sent it to its demonstration."""

LAUNCH_ORDER: tuple[Solved | None, ...] = ("never", "sometimes", None, "always")
"""By the last visit; None: there was none. Those that need most come first, so that none of them is left at the end."""


class Probe:
    """Decides how many rollouts each question of a step gets, and remembers how the visits ended."""

    def __init__(self, config: Config, gate: Gate) -> None:
        assert config.rollout.probe is not None
        self._k, self._n = config.rollout.probe, config.sampled
        self._gate = gate
        self._last_visits: dict[str, Solved] = {}  # by id of the question

    def first(self, experiences: Sequence[Experience]) -> list[Experience]:
        """All of them in launch order; those that get only k rollouts for now are marked as probed."""
        for experience in experiences:
            experience.probe = None if self._last_visit(experience) == "never" else self._k
        return self._in_launch_order(experiences)

    def open(self, experiences: Sequence[Experience]) -> list[Experience]:
        """Those that go on, in launch order."""
        probed = [
            experience
            for experience in self._in_launch_order(experiences)
            if experience.probe and experience.question.demonstration is not None  # without one it is RL in any case
        ]
        return [each for each in probed if not settled(self._gate, each.score * self._k, self._k, self._n)]

    def missing(self, experience: Experience) -> int:
        """How many rollouts to sample next."""
        if experience.probe and not experience.rollouts:
            return experience.probe
        return self._n - len(experience.rollouts)

    def remember(self, experiences: Sequence[Experience]) -> None:
        """Notes how the visits ended, for the next ones. Visits without verdicts are as if there were none."""
        for experience in experiences:
            if experience.judged:
                self._last_visits[experience.question.id] = solved(experience)

    def state_dict(self) -> dict[str, Any]:
        return {"last_visits": dict(self._last_visits)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Equal strings are the same object again, as before the save: pickle writes those in other bytes than copies.
        self._last_visits = {
            question: cast(Solved, sys.intern(visit)) for question, visit in state["last_visits"].items()
        }

    def _in_launch_order(self, experiences: Sequence[Experience]) -> list[Experience]:
        return sorted(experiences, key=lambda experience: LAUNCH_ORDER.index(self._last_visit(experience)))

    def _last_visit(self, experience: Experience) -> Solved | None:
        return self._last_visits.get(experience.question.id)


def settled(gate: Gate, total: float, k: int, n: int) -> bool:
    """Whether a monotone gate decides the same whatever the other n - k scores are; total: sum of the first k."""
    return gate(total / n) == gate((total + n - k) / n)


def solved(experience: Experience) -> Solved:
    if experience.score == 0 or experience.decision.alpha == 0:
        return "never"
    return "always" if experience.score == 1 else "sometimes"


def size_factor(advantage: str, k: int, n: int) -> float:
    """What advantages of k rollouts are multiplied by, so that their gradient's expectation is that of n."""
    if advantage == "mean":
        return ((n - 1) / n) / ((k - 1) / k)
    return 1.0
