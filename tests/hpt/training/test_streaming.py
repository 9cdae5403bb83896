"""Rollouts handed over one by one: to the verifier while others are generated, in a result that no timing changes."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.records.checkpoints import checkpoints
from hpt.records.files import read_metrics
from hpt.rollout import Rollout, RolloutEngine, Sampling
from hpt.support.errors import HptError, RolloutError
from hpt.training import run
from hpt.training.assemble import assemble
from hpt.training.trainer import Trainer
from hpt.verify import FunctionVerifier, MathVerifier, Verifier

JUDGES = """
import time
from pathlib import Path

def touch(response, answer):
    Path(response).touch()
    return True

def nap(response, answer):
    time.sleep(float(response))
    return True
"""


@pytest.fixture(autouse=True)
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges.py").write_text(JUDGES)
    monkeypatch.syspath_prepend(tmp_path)


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} was not graded while more was to come"
        time.sleep(0.01)


def test_a_response_is_graded_before_the_next_is_handed_over(tmp_path: Path) -> None:
    with FunctionVerifier("judges:touch", timeout=60) as verifier, verifier.scoring() as scoring:
        for name in ("first", "second", "third"):
            scoring.add(name, str(tmp_path / name), "")
            wait_for(tmp_path / name)
        assert {key: verdict.status for key, verdict in scoring.verdicts().items()} == dict.fromkeys(
            ("first", "second", "third"), "correct"
        )


def test_the_verdicts_are_those_of_score_in_whatever_order_responses_come() -> None:
    responses = [rf"so \boxed{{{i % 7}}}" for i in range(40)] + ["none at all"]
    answers = [str(i % 5) for i in range(40)] + ["1"]
    order = list(range(len(responses)))
    random.Random(0).shuffle(order)
    with MathVerifier(workers=2, timeout=60) as verifier:
        expected = verifier.score(responses, answers)
        with verifier.scoring() as scoring:
            for place in order:
                scoring.add(place, responses[place], answers[place])
            found = scoring.verdicts()
        assert [found[place] for place in range(len(responses))] == expected
        assert {verdict.status for verdict in expected} == {"correct", "incorrect", "unparsable"}


def interrupted(verifier: Verifier) -> None:
    with verifier.scoring() as scoring:
        for place in range(5):
            scoring.add(place, f"{50 + place}", "")
        raise KeyboardInterrupt


def test_abandoned_work_is_dropped_and_does_not_meet_what_follows() -> None:
    with FunctionVerifier("judges:nap", workers=1, timeout=60) as verifier:
        verifier.score(["0"], [""])  # the processes' output has a thread as long as they run
        before = threading.active_count()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupted(verifier)
        assert time.monotonic() - began < 40
        assert threading.active_count() == before
        assert [verdict.status for verdict in verifier.score(["0"], [""])] == ["correct"]


class Shuffled(RolloutEngine):
    """The recipe's engine, handing finished rollouts over in another order, and failing when told to."""

    def __init__(self, engine: RolloutEngine) -> None:
        self.engine = engine
        self.calls: list[str] = []
        self.fail_at = 0

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, on_rollout=None):  # type: ignore[no-untyped-def]
        self.calls.append("generate")
        if self.calls.count("generate") == self.fail_at:
            raise RolloutError("the engine died")
        finished: list[tuple[int, int, Rollout]] = []
        groups = self.engine.generate(prompts, sampling, seed, lambda *parts: finished.append(parts))
        random.Random(seed).shuffle(finished)
        for parts in finished:
            if on_rollout:
                on_rollout(*parts)
        return groups

    def sleep(self) -> None:
        self.calls.append("sleep")

    def weights_changed(self) -> None:
        self.calls.append("weights_changed")


def test_the_order_in_which_rollouts_finish_changes_nothing(world: Path, tmp_path: Path) -> None:
    config = load_config(world, [f"output={tmp_path / 'run'}"])
    seen = []
    for wrap in (lambda engine: engine, Shuffled):
        with assemble(config, None) as trainer:
            trainer.rollout_engine = wrap(trainer.rollout_engine)
            steps = [trainer.step(step) for step in (1, 2)]
            seen.append([experience.rollouts for _, step in steps for experience in step])
            seen.append([metrics["train/loss"] for metrics, _ in steps])
            calls = getattr(trainer.rollout_engine, "calls", [])
    assert seen[:2] == seen[2:]
    # An engine sleeps while the trainer trains, and learns of the new weights.
    assert calls == ["generate", "sleep", "weights_changed"] * 2


@pytest.mark.parametrize(("fail_at", "done"), [(1, 0), (3, 1), (4, 2)])
def test_an_engine_that_fails_costs_no_finished_step(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int, done: int
) -> None:
    """generate is called before step 1 for the evaluation, in steps 1 and 2, and for the evaluation after step 2."""

    @contextmanager
    def failing(*parts: Any, **settings: Any) -> Iterator[Trainer]:
        with assemble(*parts, **settings) as trainer:
            trainer.rollout_engine = engine = Shuffled(trainer.rollout_engine)
            engine.fail_at = fail_at
            yield trainer

    folder = tmp_path / "run"
    config = load_config(world, [f"output={folder}", "steps=3", "checkpoint.every=0", "eval.every=2"])
    with monkeypatch.context() as patch:
        patch.setattr(run, "assemble", failing)
        with pytest.raises(HptError, match=f"the engine died\nStopped after step {done}; continue with: hpt train"):
            run.start(config)
    assert [path.name for path in checkpoints(folder)] == ([f"step-{done:06d}"] if done else [])
    if fail_at > 1:
        assert [line["step"] for line in read_metrics(folder)] == list(range(done + 1))
    assert main(["train", "--resume", str(folder)]) == 0
    assert [line["step"] for line in read_metrics(folder)] == [0, 1, 2, 3]
