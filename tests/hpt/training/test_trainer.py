"""The trainer's step: its order, its seeds, what it tells rewards, and its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hpt.config.recipe import load_config
from hpt.data.questions import Question
from hpt.method.probe import Probe
from hpt.method.rows import Row
from hpt.optim.engine import Update
from hpt.rollout import Sampling
from hpt.support.distributed import World
from hpt.support.errors import HptError, MethodError, RolloutError
from hpt.support.seeds import seed_for
from hpt.training.assemble import assemble
from hpt.training.callbacks import Callback
from hpt.training.metrics import StepStats
from hpt.training.trainer import Trainer
from hpt.verify import TrainerState


@pytest.fixture
def trainer_of(world: Path) -> Iterator[Callable[..., Trainer]]:
    opened = []

    def make(*settings: str) -> Trainer:
        context = assemble(load_config(world, ["eval.every=0", *settings]), None)
        opened.append(context)
        return context.__enter__()

    yield make
    for context in opened:
        context.__exit__(None, None, None)


class Second(World):
    """Rank 1 of 2; the other has the same to say."""

    def __init__(self) -> None:
        super().__init__(1, 2)

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


def noted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., None]) -> None:
    """Calls `note` with the arguments before each call of the method."""
    method = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        note(*arguments)
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


class Notes(Callback):
    def __init__(self, events: list[str], trainer: Trainer) -> None:
        self.events, self.trainer = events, trainer
        self.rows: list[list[list[Row]]] = []

    def note(self, event: str) -> None:
        mode = "train" if self.trainer.policy.model.training else "eval"
        self.events.append(f"{event} ({mode}{', updating' if self.trainer.updating else ''})")

    def before_updates(self, updates: Sequence[Sequence[Row]], stats: StepStats) -> None:
        self.rows.append([list(rows) for rows in updates])
        self.note("before updates")

    def before_update(self, rows: Sequence[Row], stats: StepStats) -> None:
        assert rows == self.rows[-1][len(stats.updates)]
        self.note("before update")

    def after_update(self, rows: Sequence[Row], stats: StepStats) -> None:
        assert rows == self.rows[-1][len(stats.updates) - 1]
        self.note("after update")

    def after_updates(self) -> None:
        self.note("after updates")


@pytest.mark.parametrize("kind", ["local", "deepspeed"])
def test_the_order_of_a_step_and_from_when_on_no_checkpoint_is_possible(
    kind: str, trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that keeps parts of an update to itself is updating from the start, another from its first update."""
    trainer = trainer_of("batch.updates=2", "batch.tokens=1000", "gate={kind: switch, gamma: 0}")
    events: list[str] = []
    notes = Notes(events, trainer)
    trainer.callbacks = [notes]
    trainer.engine.kind = kind
    for owner, name in (
        (trainer.rollout_engine, "generate"),
        (trainer.rollout_engine, "sleep"),
        (trainer.rollout_engine, "weights_changed"),
        (trainer.policy, "loss"),
        (trainer.engine, "step"),
        (trainer.engine, "end_step"),
    ):
        noted(monkeypatch, owner, name, lambda *_, name=name: notes.note(name))
    assert (trainer.steps_done, trainer.updating, trainer.warned) == (0, False, False)
    metrics, _ = trainer.step(3)
    assert {name for name in metrics if name.startswith("time/")} == {
        *("time/rollout", "time/verify", "time/train", "time/step"),
    }
    assert (trainer.steps_done, trainer.updating) == (3, False)
    first = ", updating" if kind == "deepspeed" else ""
    sampling = {event.partition(" ")[0] for event in events[:2]}
    assert sampling == {"generate", "sleep"}
    assert events[2:] == [
        f"before updates (eval{first})",
        *(f"before update (train{first})", f"loss (train{first})", "step (train, updating)"),
        "after update (train, updating)",
        *("before update (train, updating)", "loss (train, updating)", "step (train, updating)"),
        "after update (train, updating)",
        "end_step (train, updating)",
        "after updates (train, updating)",
        "weights_changed (train, updating)",
    ]
    one, other = notes.rows[0]
    assert {tuple(row.tokens[: row.prompt_length]) for row in one}.isdisjoint(
        tuple(row.tokens[: row.prompt_length]) for row in other
    )


def test_every_draw_has_a_seed_of_its_step_batch_purpose_and_rank(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["method=dapo", "seed=5", "rollout.dynamic_rounds=2", "verify.function=rewards:always"]
    trainer = trainer_of(*settings, "eval.temperature=0.5", "eval.max_tokens=3", "eval.n=2")
    calls: list[tuple[Sampling, int]] = []
    seeds: list[int] = []
    noted(monkeypatch, trainer.rollout_engine, "generate", lambda _, sampling, seed, __: calls.append((sampling, seed)))
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    for rank in (0, 1):
        if rank:
            trainer.world = Second()
        _, experiences = trainer.step(3)
        assert len(experiences) == 2 * trainer.config.batch.questions
        training = Sampling.for_training(trainer.config)
        assert calls == [(training, seed_for(5, batch, "rollout", rank)) for batch in (5, 6)]
        assert seeds[0] == seed_for(5, 3, "train", rank)
        calls.clear()
        seeds.clear()
        result = trainer.evaluate()
        assert calls == [(Sampling.for_evaluation(trainer.config), seed_for(5, 0, "eval", rank))]
        assert result.n == 2
        assert [len(each.rollouts) for each in result.questions] == [2] * len(trainer.held_out)
        calls.clear()
        seeds.clear()


def test_what_rewards_are_told_about_the_run(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of("steps=7", "batch.questions=6", "method=luffy", "rewards=['rewards:share_of_digits']",
                         "gate.reads=share_of_digits", "gate.threshold=0.5")  # fmt: skip
    questions = len(trainer.questions)
    assert trainer.state_after(0) == TrainerState(global_step=0, max_steps=7, epoch=0.0)
    assert trainer.state_after(3) == TrainerState(global_step=3, max_steps=7, epoch=18 / questions)
    told: list[TrainerState] = []
    functions = trainer.reward_functions
    assert functions is not None
    calling = functions.calling
    functions.calling = lambda state: told.append(state) or calling(state)  # type: ignore[method-assign, func-returns-value]
    trainer.step(4)
    assert told == [TrainerState(global_step=3, max_steps=7, epoch=18 / questions)]


@pytest.mark.parametrize("phase", ["rollout", "train", "eval"])
def test_too_little_memory_is_said_with_the_phase_and_what_to_change(
    phase: str, trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError("no room")

    trainer = trainer_of("output=runs/full")
    owner, name = (trainer.policy, "loss") if phase == "train" else (trainer.rollout_engine, "generate")
    monkeypatch.setattr(owner, name, full)
    with pytest.raises(
        HptError, match=rf"out of memory in the phase '{phase}' of the run: no room\n.*runs/full"
    ) as error:
        trainer.evaluate() if phase == "eval" else trainer.step(1)
    assert isinstance(error.value, RolloutError) == (phase != "train")


def test_held_out_questions_without_answers_are_judged_by_the_reward_of_the_gate(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = ["method=luffy", "rewards=['rewards:share_of_digits', 'rewards:minus_length']"]
    gate = ["gate.reads=share_of_digits", "gate.threshold=0.4"]
    trainer = trainer_of(*rewards, *gate, "steps=9", "batch.questions=6", "eval.n=16", "eval.temperature=1")
    trainer.held_out = [Question("q", "1+1=", None), Question("r", "2+2=", None)]
    trainer.steps_done = 4
    told: list[TrainerState] = []
    assert trainer.reward_functions is not None
    noted(monkeypatch, trainer.reward_functions, "calling", told.append)
    rollouts = [rollout for result in trainer.evaluate().questions for rollout in result.rollouts]
    shares = [sum(map(str.isdigit, rollout.text)) / max(1, len(rollout.text)) for rollout in rollouts]
    assert [rollout.score for rollout in rollouts] == [share >= 0.4 for share in shares]
    assert len({rollout.score for rollout in rollouts}) == 2
    assert told == [trainer.state_after(4)]


def test_with_loss_on_all_turns_what_is_imitated_is_the_conversation(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of("method=sft")
    data = trainer.config.data.model_copy(update={"loss_on": "all"})  # a recipe needs a chat template for it
    trainer.config = trainer.config.model_copy(update={"data": data})
    monkeypatch.setattr(trainer.renderer, "conversation", lambda question: f"conversation of {question.id}")
    experiences = trainer.draw(1)
    trainer.apply_gate(experiences)
    assert [each.conversation for each in experiences] == [
        f"conversation of {each.question.id}" for each in experiences
    ]
    answers = trainer_of("method=sft")
    experiences = answers.draw(1)
    answers.apply_gate(experiences)
    assert [each.conversation for each in experiences] == [None] * len(experiences)


@pytest.mark.parametrize("part", ["gate", "estimate_advantages"])
def test_a_function_of_the_users_that_fails_is_an_error_of_the_method(
    part: str, trainer_of: Callable[..., Trainer]
) -> None:
    def fails(*_: Any) -> None:
        raise HptError("returned 3 numbers")

    trainer = trainer_of()
    setattr(trainer, part, fails)
    with pytest.raises(MethodError, match=r"^returned 3 numbers$"):
        trainer.step(1)


def test_what_the_ranks_counted_is_added_up(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of("method=sft")
    experiences = trainer.draw(1)
    trainer.decide(experiences)
    rows = trainer.rows(experiences)
    tokens = sum(row.response_length for row in rows[0])
    assert trainer.update(rows).counts.tokens == tokens
    trainer.world = Second()
    assert trainer.update(rows).counts.tokens == 2 * tokens


def test_questions_whose_demonstration_is_missing_are_counted(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of("data.missing_demonstrations=rollouts", "verify.function=rewards:never", "batch.questions=6")
    trainer.questions = [replace(question, demonstration=None) for question in trainer.questions]
    metrics, experiences = trainer.step(1)
    assert metrics["gate/without_demonstration"] == len(experiences) == 6
    assert "gate/without_demonstration" not in trainer_of().step(1)[0]


def test_that_no_reward_applies_is_said_once(
    trainer_of: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of("method=grpo", "rewards=['rewards:by_a_column']")
    trainer.step(1)
    trainer.step(2)
    (said,) = [record.getMessage() for record in caplog.records if "No reward applies" in record.getMessage()]
    sampled = trainer.config.batch.questions * trainer.config.rollout.n
    assert said.startswith(f"No reward applies to any of the {sampled} rollouts of this step")
    assert "None from by_a_column." in said
    assert trainer.warned
    caplog.clear()
    without_rollouts = trainer_of("method=sft", "rewards=['rewards:by_a_column']")
    without_rollouts.step(1)
    assert "No reward applies" not in caplog.text


def test_what_sampling_took_is_recorded_where_it_may_take_several_rounds(trainer_of: Callable[..., Trainer]) -> None:
    once, _ = trainer_of("method=grpo").step(1)
    twice, _ = trainer_of("method=grpo", "rollout.dynamic_rounds=2").step(1)
    sampling = {"sampling/rounds", "sampling/mixed", "sampling/trained"}
    assert sampling.isdisjoint(once)
    assert sampling | {"train/loss"} <= twice.keys()


def test_the_updates_of_a_step_are_as_many_as_its_rows_fill(trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of("method=sft", "batch.questions=6", "batch.updates=4", "batch.rows_per_update=2")
    experiences = trainer.draw(1)
    trainer.decide(experiences)
    rows = {count: [len(part) for part in trainer.rows(experiences[:count])] for count in range(1, 7)}
    assert rows == {1: [1], 2: [2], 3: [2, 1], 4: [2, 2], 5: [2, 2, 1], 6: [2, 2, 2]}
    experiences[0].trained = False
    assert [len(part) for part in trainer.rows(experiences)] == [2, 2, 1]
    assert [len(part) for part in trainer.rows([])] == [0]
    trainer = trainer_of("method=sft", "batch.updates=4", "batch.rows_per_update=1")
    assert [len(part) for part in trainer.rows(experiences)] == [2, 1, 1, 1]


def test_the_state_is_of_the_engine_the_probe_and_the_callbacks(trainer_of: Callable[..., Trainer]) -> None:
    class Counter(Callback):
        count = 0

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

    first, second = (trainer_of("rollout.probe=2", "verify.function=rewards:has_a_digit") for _ in range(2))
    first.callbacks, second.callbacks = [Counter()], [Counter()]
    first.step(1)
    first.callbacks[0].count = 3  # type: ignore[attr-defined]
    state = first.state_dict()
    assert set(state) == {"kind", "engine", "probe", "count"}
    assert (state["kind"], state["count"]) == ("local", 3)
    second.load_state_dict(state)
    assert second.callbacks[0].count == 3  # type: ignore[attr-defined]
    assert isinstance(second.probe, Probe)
    assert second.probe.state_dict() == state["probe"] != {"last_visits": {}}
    assert second.engine.state_dict().keys() == state["engine"].keys()
    del state["probe"]
    second.load_state_dict(state)  # a run that begins to probe
    state["kind"] = "deepspeed"
    with pytest.raises(HptError, match=r"was written by engine deepspeed and this run has local: .*ZeRO stage"):
        second.load_state_dict(state)


@pytest.mark.parametrize(("dtype", "warnings"), [("float32", 1), ("float16", 0)])
def test_an_update_whose_gradient_is_not_finite_is_warned_of(
    dtype: str, warnings: int, trainer_of: Callable[..., Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    """Not in float16, whose loss scale is found in this way."""
    trainer = trainer_of("method=sft", f"model.dtype={dtype}")
    trainer.steps_done = 6
    head = trainer.policy.model.get_output_embeddings().weight
    head.register_hook(lambda gradient: gradient * math.inf)
    metrics, _ = trainer.step(7)
    assert metrics["train/skipped"] == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text[:36] for text in said] == ["Step 7: an update is left out, since"] * warnings
    trainer.warn_of_infinite_gradient(Update(1.0, 1.0, skipped=True))  # of a large norm
    assert len(caplog.records) == warnings
