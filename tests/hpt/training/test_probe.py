"""Runs with rollout.probe: what is sampled, recorded and remembered, and that several ranks agree."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from thread_ranks import on_ranks

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.data.order import QuestionOrder
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import ONLY_ROLLOUTS, gate_of
from hpt.method.probe import Probe
from hpt.records.checkpoints import checkpoints
from hpt.records.files import ROLLOUTS, read_jsonl, read_metrics, step_files
from hpt.rollout import Rollout, RolloutEngine
from hpt.support.distributed import World
from hpt.training.phases import PhaseClock
from hpt.training.trainer import Trainer
from hpt.verify import Verdict

SETTINGS = ["rollout.probe=2", "verify.function=rewards:begins_with_a_digit", "steps=8", "checkpoint.keep=9"]


@pytest.fixture(scope="module")
def unbroken(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two passes over the questions, with 2 of 4 rollouts first."""
    folder = tmp_path_factory.mktemp("probed") / "run"
    assert main(["train", str(world), f"output={folder}", *SETTINGS]) == 0
    return folder


def test_a_question_goes_on_while_none_is_right_and_rl_trains_on_the_first(unbroken: Path) -> None:
    last_visit: dict[str, dict[str, Any]] = {}
    stopped = went_on = at_once = 0
    for step, path in step_files(unbroken, ROLLOUTS).items():
        records = read_jsonl(path)
        (line,) = [line for line in read_metrics(unbroken) if line["step"] == step]
        for record in records:
            scores, advantages = record["scores"], record["advantages"]
            failed_last_time = last_visit.get(record["id"], {}).get("beta") == 1
            assert ("probe" not in record) == failed_last_time
            assert len(scores) == (4 if failed_last_time or not any(scores[:2]) else 2)
            assert record["alpha"] == (sum(scores) > 0)
            if not failed_last_time:
                mean = sum(scores[:2]) / 2
                factor = (3 / 4) / (1 / 2)
                assert advantages == pytest.approx(
                    [factor * (score - mean) for score in scores[:2]] + [0] * len(scores[2:])
                )
            stopped += len(scores) == 2
            went_on += len(scores) == 4 and not failed_last_time
            at_once += failed_last_time
            last_visit[record["id"]] = record
        samples = sum(len(record["responses"]) for record in records)
        assert line["rollout/samples"] == line["response/count"] == 24 - line["rollout/samples_saved"] == samples
        assert line["rollout/probed"] == sum("probe" in record for record in records)
        assert line["rollout/stopped"] == sum(len(record["responses"]) == 2 for record in records)
        assert line["rollout/probe_reward/sum"] == sum(sum(record["scores"][:2]) for record in records)
        assert line["rollout/probe_reward/count"] == 12
        assert "rollout/probe_reward/std" not in line
        assert line["gate/none"] == line["gate/sft"]
        assert line["gate/none"] + line["gate/some"] + line["gate/all"] == 6
    assert stopped
    assert went_on
    assert at_once


def test_a_resumed_run_remembers_the_visits(
    unbroken: Path, tmp_path: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for checkpoint in checkpoints(run)[2:]:
        shutil.rmtree(checkpoint)
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics_of(run) == metrics_of(unbroken)
    for path in (unbroken / ROLLOUTS).iterdir():
        assert (run / ROLLOUTS / path.name).read_bytes() == path.read_bytes()
    for one, other in zip(checkpoints(run), checkpoints(unbroken), strict=True):
        for name in ("model.safetensors", "trainer_state.pt"):
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_rewards_are_asked_for_the_first_and_then_for_the_rest(world: Path, tmp_path: Path) -> None:
    rewards = ["rewards=[verifier, {function: 'rewards:share_of_digits', weight: 0.5}]", "steps=1", "eval.every=0"]
    assert main(["train", str(world), f"output={tmp_path / 'run'}", *SETTINGS, *rewards]) == 0
    records = [record for path in step_files(tmp_path / "run", ROLLOUTS).values() for record in read_jsonl(path)]
    assert {len(record["responses"]) for record in records} == {2, 4}
    for record in records:
        count = len(record["responses"])
        assert record["extra"]["together"] == [2] * count  # completions of a call
        assert [len(values) for values in record["rewards"].values()] == [count, count]
        parts = zip(record["rewards"]["verifier"], record["rewards"]["share_of_digits"], strict=True)
        assert record["total_rewards"] == pytest.approx([score + 0.5 * digits for score, digits in parts])
        assert record["rewards"]["verifier"] == record["scores"]


class Engine(RolloutEngine):
    """A response is its question, the seed, and which of its samples it is; a call notes how many prompts it had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def generate(self, prompts: Any, sampling: Any, seed: int, on_rollout: Any = None) -> list[list[Rollout]]:
        assert sampling.n == 1
        self.calls.append(len(prompts))
        repeats = [list(prompts[:place]).count(prompt) for place, prompt in enumerate(prompts)]
        groups = [
            [Rollout([prompt[0], 10 * seed + repeat], [0.0, 0.0], "stop")]
            for prompt, repeat in zip(prompts, repeats, strict=True)
        ]
        for index, (rollout,) in enumerate(groups):
            on_rollout(index, 0, rollout)
        return groups


class Renderer:
    class tokenizer:
        @staticmethod
        def decode(tokens: Sequence[int], **options: Any) -> str:
            return str(tokens[0])

    def encode_prompts(self, questions: Sequence[Question]) -> list[list[int]]:
        return [[int(question.id)] for question in questions]


class Verifier:
    """Right are the responses to questions 0 and 3."""

    @contextmanager
    def scoring(self) -> Iterator[Verifier]:
        self.found: dict[Hashable, Verdict] = {}
        yield self

    def add(self, key: Hashable, response: str, answer: str) -> None:
        right = response in ("0", "3")
        self.found[key] = Verdict("correct" if right else "incorrect", float(right))

    def verdicts(self) -> dict[Hashable, Verdict]:
        return self.found


def test_ranks_agree_on_what_goes_on_and_call_the_engine_equally_often(world: Path) -> None:
    """Of four questions one is open after the probes: one rank samples for it, the other has nothing to sample."""
    config = load_config(str(world), ["rollout.n=4", "rollout.probe=2", "batch.questions=4"])
    unused = None

    def play(own: World) -> Any:
        parts: dict[str, Any] = {
            "renderer": Renderer(),
            "rollout_engine": (engine := Engine()),
            "verifier": Verifier(),
        }
        probe = Probe(config, gate_of(config))
        probe.remember([visited("1", 0.0), visited("0", 0.5), visited("3", 1.0)])  # so the order is 1, 0, 2, 3
        parts |= dict.fromkeys(("gate", "estimate_advantages", "policy", "engine", "micro_batches"), unused)
        questions = [Question(str(number), "?", "", "d") for number in range(4)]
        trainer = Trainer(
            config, questions, QuestionOrder(4, 4, 0), [], clock=PhaseClock(config), probe=probe, world=own, **parts
        )
        experiences = trainer.draw(1)
        trainer.sample_and_verify(1, 1, probe.first(experiences))
        went_on = probe.open(experiences)
        trainer.sample_and_verify(1, 1, went_on)
        drawn = {each.question.id: [rollout.tokens for rollout in each.rollouts] for each in experiences}
        return drawn, [each.question.id for each in went_on], engine.calls

    (drawn, went_on, calls), (others_drawn, others_went_on, others_calls) = on_ranks(2, play)
    assert drawn == others_drawn
    assert went_on == others_went_on == ["2"]
    assert {id: len(tokens) for id, tokens in drawn.items()} == {"0": 2, "1": 4, "2": 4, "3": 2}
    assert (calls, others_calls) == ([4 + 2, 2], [2 + 2, 0])
    assert len({tuple(tokens) for tokens in drawn["2"]}) == 4  # all by rank 0: the rest has a seed of its own


def visited(id: str, score: float) -> Experience:
    rollout = Rollout([1], [0.0], "stop", verdict=Verdict("incorrect", score))
    return Experience(Question(id, "?", ""), [0], [rollout], ONLY_ROLLOUTS)
