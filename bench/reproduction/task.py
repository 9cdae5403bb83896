"""What is compared: the methods, the demonstrations that they get, and the two tasks."""

from __future__ import annotations

from dataclasses import dataclass

from hpt.demos import sums, word_problems
from hpt.support.errors import HptError

START = "start"
"""In place of a method: the start model, before any run."""
CLEAN, WRONG = "clean", "wrong"
"""Conditions: all demonstrations are right, or each is wrong with probability .4."""
FIRST_STAGE = 0.5
"""The share of the steps in the first stage of runs in two stages."""
Pair = tuple[str, str]
"""A condition and the name of a method."""
TITLES = {CLEAN: "clean demonstrations", WRONG: "partly wrong demonstrations"}

SET_HERE = (
    "output",
    "prepare",
    "seed",
    "method",
    "stages",
    "optimizer.lr",
    "gate.gamma",
    "rl.coef",
    "model.path",
    "data.train",
    "data.eval",
    "data.wrong_demonstrations",
)
"""Settings of a recipe that tell the trials apart."""

_VERIFIED = "data.wrong_demonstrations=rollouts"  # those that the verifier refuses are not imitated


@dataclass(frozen=True)
class Method:
    """One way to train.

    settings: what it changes in the recipe. first: for runs in two stages, the method that its first stage is tuned as.
    verified: it differs from another method only where demonstrations are wrong.
    """

    settings: tuple[str, ...]
    first: str | None = None
    demonstrations: bool = True
    verified: bool = False


METHODS = {
    "sft": Method(("method=sft",)),
    "sft-verified": Method(("method=sft", _VERIFIED), verified=True),
    "grpo": Method(("method=grpo",), demonstrations=False),
    "sft-then-grpo": Method((), first="sft"),
    "sft-verified-then-grpo": Method((_VERIFIED,), first="sft-verified", verified=True),
    "luffy": Method(("method=luffy",)),
    "srft": Method(("method=srft",)),
    "hpt": Method(("method=hpt",)),
    "hpt-verified": Method(("method=hpt", _VERIFIED), verified=True),
    "hpt-without-rl": Method(("method=hpt", "rl.coef=0")),
    "hpt-offpolicy": Method(("method=hpt-offpolicy",)),
    "hpt-mix": Method(("method=hpt-mix",)),
}


@dataclass(frozen=True)
class Task:
    """A recipe, and what is run on it.

    prepare: what makes the files of each condition. untrained: the grade of held-out questions that no training
    question has. ladder: the learning rates that tuning may try. rates: those that it starts with.
    n: responses per held-out question at the end. exam: further arguments of `hpt eval`. gammas: values for HPT's gate
    besides 0. warm_up: settings of a run whose model all runs start from; without them, `prepare` makes the model of a
    seed.
    """

    recipe: str
    methods: tuple[str, ...]
    prepare: dict[str, str]
    untrained: str
    ladder: tuple[float, ...]
    rates: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]
    n: int
    exam: tuple[str, ...]
    gammas: tuple[float, ...] = ()
    warm_up: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if shared := set(self.tuning_seeds) & set(self.seeds):
            raise HptError(f"seed {shared.pop()}: chooses the learning rates, so it must not be a seed of the results")
        for rate in self.rates:
            if rate not in self.ladder:
                allowed = ", ".join(f"{rate:g}" for rate in self.ladder)
                raise HptError(f"{self.recipe}: the learning rate must be one of {allowed}, got {rate:g}")
        for method in self.methods:
            first = METHODS[method].first
            if first not in (None, *self.methods):
                raise HptError(f"{method}: its first stage has the learning rate of {first}, which must be run too")

    def methods_with(self, condition: str) -> list[str]:
        """Those whose runs are not the same as those of another condition or method."""
        return [
            name
            for name in self.methods
            if (METHODS[name].demonstrations or condition == self.conditions[0])
            and (condition == WRONG or not METHODS[name].verified)
        ]

    @property
    def conditions(self) -> list[str]:
        return list(self.prepare)


SUMS = Task(
    recipe="sums",
    methods=tuple(METHODS),
    prepare={CLEAN: "hpt.demos.sums:prepare", WRONG: "hpt.demos.sums:prepare_wrong"},
    untrained=sums.UNTRAINED,
    ladder=(3.3e-5, 1e-4, 3e-4, 9e-4, 2.7e-3, 8.1e-3),
    rates=(3e-4, 9e-4),
    tuning_seeds=(100, 101),
    seeds=(0, 1, 2, 3, 4),
    n=256,
    exam=("--style", "plain", "--verifier", "boxed", "--max-tokens", "44", "--batch-size", "512"),
    gammas=(0.125, 0.5),
)
WORD_PROBLEMS = Task(
    recipe="word-problems",
    methods=("sft", "sft-verified", "grpo", "sft-then-grpo", "sft-verified-then-grpo", "hpt"),
    prepare={WRONG: "hpt.demos.word_problems:prepare_wrong"},
    untrained=word_problems.UNTRAINED,
    ladder=(3.3e-6, 1e-5, 3.3e-5, 1e-4),
    rates=(1e-5, 3.3e-5),
    tuning_seeds=(100,),
    seeds=(0, 1),
    n=8,
    exam=("--style", "plain", "--verifier", "boxed", "--max-tokens", "40", "--batch-size", "240"),
    warm_up=("seed=1000", "method=sft", "steps=8", "batch.questions=16", "optimizer.lr=2e-4"),
)
TASKS = {task.recipe: task for task in (WORD_PROBLEMS, SUMS)}
"""By recipe. The one that needs a further package comes first, so that a missing one is noticed at once."""
