"""Every method as one short run of the same trainer: what is its own, and what must hold for all."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hpt.commands.main import main
from hpt.config.recipe import load_config, shipped_methods
from hpt.config.stages import stages_of
from hpt.method.advantage import advantages
from hpt.records.checkpoints import checkpoints
from hpt.support.errors import ConfigError
from hpt.training.assemble import assemble
from hpt.training.callbacks import CriticUpdates
from hpt.training.checkpoint import load_state
from hpt.training.rollout_records import rollout_records

Metrics = Callable[[Path], list[dict[str, Any]]]
ROLLOUTS = 24  # of a step: 6 questions x 4


def train(world: Path, run: Path, method: str, *settings: str) -> None:
    arguments = [f"method={method}", f"output={run}", "eval.every=0", "steps=2", *settings]
    assert main(["train", str(world), *arguments]) == 0


def decisions(run: Path, step: int = 1) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rollouts" / f"step-{step:06d}.jsonl").open()]


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return all(torch.equal(a[name], b[name]) for name in a)


def same_run(run: Path, unbroken: Path, metrics_of: Metrics) -> bool:
    return metrics_of(run) == metrics_of(unbroken) and same_weights(checkpoints(run)[-1], checkpoints(unbroken)[-1])


def resumed_from(step: int, unbroken: Path, run: Path) -> Path:
    shutil.copytree(unbroken, run)
    for checkpoint in checkpoints(run):
        if int(checkpoint.name[-6:]) > step:
            shutil.rmtree(checkpoint)
    assert main(["train", "--resume", str(run)]) == 0
    return run


def test_every_method_of_the_paper_is_shipped() -> None:
    assert set(shipped_methods()) >= {
        *("sft", "grpo", "sft-then-grpo", "reinforce", "ppo", "cispo", "gspo", "dr-grpo", "dapo"),
        *("luffy", "srft", "hpt", "hpt-offpolicy", "hpt-mix", "hpt-soft"),
    }


@pytest.mark.parametrize("method", ["reinforce", "cispo", "gspo", "dr-grpo"])
def test_rl_methods_train_on_rollouts_alone(world: Path, tmp_path: Path, metrics_of: Metrics, method: str) -> None:
    # A large step, so that the second update of a step meets ratios other than 1.
    train(world, tmp_path / "run", method, "optimizer.lr=3e-3")
    for line in metrics_of(tmp_path / "run"):
        assert "train/rows_sft" not in line
        assert line["gate/sft"] == line["gate/off_policy"] == 0
        assert line["train/rows"] + line["train/rows_skipped"] == ROLLOUTS
        assert line["train/grad_norm"] > 0
        assert line["train/updates"] == (2 if method in ("cispo", "gspo") else 1)
        # Only the second update can clip, and GSPO's range of 3e-4 leaves little unclipped.
        assert (line["clip/count"] > 0) == (method in ("cispo", "gspo")), line
    config = load_config(world, [f"method={method}"])
    assert config.loss.aggregation == {"cispo": "token", "dr-grpo": "constant"}.get(method, "sequence")
    if method == "reinforce":  # no baseline: wrong rollouts have advantage 0 and never reach the model
        assert all(line["train/rows"] == line["reward/sum"] for line in metrics_of(tmp_path / "run"))


def test_luffy_puts_the_demonstration_into_the_group(world: Path, tmp_path: Path, metrics_of: Metrics) -> None:
    run = tmp_path / "run"
    train(world, run, "luffy")
    for line in metrics_of(run):
        rows = decisions(run, line["step"])
        assert all(len(row["scores"]) == 3 for row in rows)  # n - 1 rollouts and the demonstration
        assert all((row["alpha"], row["beta"], row["off"]) == (1, 0, 1) for row in rows)
        unsolved = sum(sum(row["scores"]) < 3 for row in rows)  # else all four are right and teach nothing
        assert 0 < line["train/rows_off_policy"] == unsolved
        assert line["train/rows_sft"] == 0
        assert line["train/rows"] == 4 * unsolved


def test_srft_trains_the_demonstration_both_ways(world: Path, tmp_path: Path, metrics_of: Metrics) -> None:
    run = tmp_path / "run"
    train(world, run, "srft")
    for line in metrics_of(run):
        assert line["train/rows_sft"] == 6
        unsolved = sum(sum(row["scores"]) < 3 for row in decisions(run, line["step"]))
        assert line["train/rows_off_policy"] == unsolved > 0
        assert line["train/rows"] == 6 + unsolved + 6 * 3  # signs are never 0


@pytest.mark.parametrize(("method", "sft", "off"), [("hpt", 1, 0), ("hpt-offpolicy", 0, 1), ("hpt-mix", 1, 1)])
def test_the_offline_halves_of_hpt(
    world: Path, tmp_path: Path, metrics_of: Metrics, method: str, sft: int, off: int
) -> None:
    run = tmp_path / "run"
    train(world, run, method, "gate.gamma=2")
    offline = online = 0
    for line in metrics_of(run):
        rows = decisions(run, line["step"])
        for row in rows:
            unsolved = row["P"] <= 2 / 4
            assert (row["alpha"], row["beta"], row["off"]) == ((0, sft, off) if unsolved else (1, 0, 0))
        count = sum(row["P"] <= 2 / 4 for row in rows)
        assert (line["gate/sft"], line["gate/off_policy"]) == (count * sft, count * off)
        if count:
            assert (line["train/rows_sft"], line["train/rows_off_policy"]) == (count * sft, count * off)
        offline, online = offline + count, online + 6 - count
    assert offline > 0 < online


def test_off_policy_training_is_not_sft(world: Path, tmp_path: Path) -> None:
    """The published `off_sft` falls back to SFT without a word. All questions offline, the two must part."""
    for method in ("hpt", "hpt-offpolicy", "hpt-mix"):
        train(world, tmp_path / method, method, "steps=1", "verify.function=rewards:never")
    final = {method: checkpoints(tmp_path / method)[-1] for method in ("hpt", "hpt-offpolicy", "hpt-mix")}
    assert not same_weights(final["hpt"], final["hpt-offpolicy"])
    assert not same_weights(final["hpt"], final["hpt-mix"])
    assert not same_weights(final["hpt-offpolicy"], final["hpt-mix"])


def test_dapo_samples_until_enough_questions_are_mixed(world: Path, tmp_path: Path, metrics_of: Metrics) -> None:
    run = tmp_path / "run"
    train(world, run, "dapo", "steps=3", "checkpoint.every=1", "checkpoint.keep=9", "rollout.n=2")
    rounds = []
    for line in metrics_of(run):
        rows = decisions(run, line["step"])
        mixed = [len(set(row["scores"])) > 1 for row in rows]
        trained = [row["trained"] for row in rows]
        assert len(rows) == line["gate/questions"] == 6 * line["sampling/rounds"]
        assert line["sampling/mixed"] == sum(mixed)
        assert line["sampling/trained"] == sum(trained) == min(6, sum(mixed))
        assert not any(used and not worth for used, worth in zip(trained, mixed, strict=True))
        assert (line["train/rows"], line["train/rows_skipped"]) == (2 * sum(trained), 0)
        # It stopped as soon as it could: the last batch was needed.
        assert sum(mixed[:-6]) < 6
        assert isinstance(line["sampling/rounds"], int)
        rounds.append(line["sampling/rounds"])
    assert max(rounds) > 1
    ids = [row["id"] for step in (1, 2, 3) for row in decisions(run, step)]
    assert len(set(ids[: len(decisions(run, 1))])) == len(decisions(run, 1))
    again = resumed_from(1, run, tmp_path / "again")
    assert same_run(again, run, metrics_of)


def test_dapo_gives_up_after_its_rounds(world: Path, tmp_path: Path, metrics_of: Metrics) -> None:
    run = tmp_path / "run"
    train(world, run, "dapo", "steps=1", "rollout.dynamic_rounds=2", "verify.function=rewards:always")
    (line,) = metrics_of(run)
    assert (line["sampling/rounds"], line["sampling/trained"], line["train/rows"]) == (2, 0, 0)
    assert line["reward/mean"] == 1


def test_dapos_overlong_penalty_joins_the_advantage_and_not_the_score(world: Path) -> None:
    config = load_config(world, ["method=dapo", "eval.every=0", "rl.overlong.cache=0.6"])
    assert config.overlong_limits == (8, 5)
    with assemble(config, None) as trainer:
        metrics, experiences = trainer.step(1)
    lengths = [[len(rollout.tokens) for rollout in experience.rollouts] for experience in experiences]
    assert {1, 2, 8} < {length for group in lengths for length in group}
    total = 0.0
    for experience, group in zip(experiences, lengths, strict=True):
        scores = [rollout.score for rollout in experience.rollouts]
        penalties = [-0.5 * min(1, max(0, length - 3) / 5) for length in group]
        assert [rollout.overlong_penalty for rollout in experience.rollouts] == pytest.approx(penalties)
        assert experience.score == sum(scores) / 4
        rewards = [score + penalty for score, penalty in zip(scores, penalties, strict=True)]
        assert [rollout.advantage for rollout in experience.rollouts] == pytest.approx(
            advantages([rewards], "mean_std")[0]
        )
        assert experience.trained <= (len(set(scores)) > 1)  # dynamic sampling asks for the verifier's score, too
        total += sum(penalties)
    assert metrics["overlong/sum"] == pytest.approx(total)
    assert metrics["overlong/mean"] == metrics["overlong/sum"] / metrics["overlong/count"]
    assert metrics["reward/sum"] == sum(rollout.score for experience in experiences for rollout in experience.rollouts)
    (first, *_) = rollout_records(1, experiences)
    penalties = [rollout.overlong_penalty for rollout in experiences[0].rollouts]
    assert (first["overlong"], first["P"]) == (penalties, experiences[0].score)


def test_the_overlong_penalty_is_off_elsewhere(world: Path) -> None:
    on = {method for method in shipped_methods() if load_config(world, [f"method={method}"]).rl.overlong}
    assert on == {"dapo"}
    overlong = load_config(world, ["method=dapo", "rollout.max_tokens=20480"])
    assert overlong.overlong_limits == (20_480, 4_096)
    assert load_config(world, ["method=grpo", "rl.overlong={max_tokens: 6, cache: 2}"]).overlong_limits == (6, 2)


def test_ppo_resumes_with_its_critic(world: Path, tmp_path: Path, metrics_of: Metrics) -> None:
    run = tmp_path / "run"
    settings = ("steps=4", "critic.lr=1e-2", "optimizer.lr=1e-4", "optimizer.warmup_steps=2", "checkpoint.keep=9")
    train(world, run, "ppo", *settings)
    lines = metrics_of(run)
    assert all(line["train/updates"] == 2 and line["train/rows"] == ROLLOUTS for line in lines)
    # From V = 0 it learns the mean score of about one half.
    assert lines[-1]["critic/loss"] < lines[0]["critic/loss"]
    engines = [load_state(checkpoint)["critic"]["engine"] for checkpoint in checkpoints(run)]
    assert [engine["steps"] for engine in engines] == [2, 4]
    rates = [engine["optimizer"]["param_groups"][0]["lr"] for engine in engines]
    assert rates == pytest.approx([1e-2, 1e-2])  # warmed up as the policy's
    states = [load_state(checkpoint)["critic"]["model"] for checkpoint in checkpoints(run)]
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
    again = resumed_from(2, run, tmp_path / "again")
    assert same_run(again, run, metrics_of)
    resumed = load_state(checkpoints(again)[-1])["critic"]["model"]
    assert all(torch.equal(resumed[name], value) for name, value in states[1].items())


def test_updates_and_nothing_else_run_in_train_mode(world: Path) -> None:
    """They have dropout and gradient checkpointing; rollouts, old log-probabilities and values have neither."""
    config = load_config(world, ["method=ppo", "eval.every=0", "model.gradient_checkpointing=true"])
    with assemble(config, None) as trainer:
        (critic,) = (callback.critic for callback in trainer.callbacks if isinstance(callback, CriticUpdates))
        passes: dict[tuple[str, str], list[tuple[bool, bool]]] = defaultdict(list)

        def note(whose: str, part: str, module: torch.nn.Module) -> None:
            module.register_forward_pre_hook(
                lambda module, _: passes[whose, part].append((module.training, torch.is_grad_enabled()))
            )

        for whose, decoder in (("policy", trainer.policy.model.get_decoder()), ("critic", critic.model.decoder)):
            note(whose, "whole", decoder)
            note(whose, "layer", decoder.layers[0])
        trainer.step(1)
        trainer.step(2)  # from the mode that the first one left
    for modes in passes.values():
        assert set(modes) == {(False, False), (True, True)}
    for whose in ("policy", "critic"):  # a layer is computed again in each backward pass
        trained = [passes[whose, part].count((True, True)) for part in ("whole", "layer")]
        assert trained[1] == 2 * trained[0] > 0


@pytest.fixture(scope="module")
def two_stages(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stages") / "run"
    train(world, run, "sft-then-grpo", "steps=6", "checkpoint.keep=9")
    return run


def test_sft_then_grpo_is_sft_and_then_grpo_from_its_weights(
    world: Path, tmp_path: Path, metrics_of: Metrics, two_stages: Path
) -> None:
    lines = metrics_of(two_stages)
    assert ["reward/mean" in line for line in lines] == [False] * 3 + [True] * 3
    assert [line["gate/sft_share"] for line in lines] == [1.0] * 3 + [0.0] * 3
    alone = tmp_path / "sft"
    train(world, alone, "sft", "steps=3")
    assert metrics_of(alone) == lines[:3]
    boundary = two_stages / "checkpoints" / "step-000003"
    assert same_weights(checkpoints(alone)[-1], boundary)
    # The second stage starts with a fresh optimizer: after three more steps it has counted three.
    state = load_state(checkpoints(two_stages)[-1])["engine"]
    counted = {float(own["step"]) for own in state["optimizer"]["state"].values()}
    assert (counted, state["steps"]) == ({3.0}, 3)


@pytest.mark.parametrize("kept", [2, 3, 4])  # within the first stage, between the two, within the second
def test_stages_resume_bit_exactly(tmp_path: Path, metrics_of: Metrics, two_stages: Path, kept: int) -> None:
    assert same_run(resumed_from(kept, two_stages, tmp_path / "run"), two_stages, metrics_of)


def test_what_has_begun_of_a_run_in_stages_stays(
    tmp_path: Path, metrics_of: Metrics, two_stages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of 6 steps are SFT; after 4 steps, half of 12 would send the run back to it, with GRPO's optimizer."""
    run = tmp_path / "run"
    shutil.copytree(two_stages, run)
    shutil.rmtree(checkpoints(run)[-1])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(run), "steps=12"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "after 4 steps the run has had sft from step 1, grpo from step 4, and with these settings it would" in error
    assert "have had sft from step 1." in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(["train", "--resume", str(run), "stages=[{method: luffy, steps: 3}, {method: grpo}]"]) == 2
    assert "it would have had luffy from step 1, grpo from step 4" in " ".join(capsys.readouterr().err.split())
    [advised] = re.findall(r"stages='(.*)'", error)
    assert main(["train", "--resume", str(run), "steps=7", f"stages={advised}"]) == 0
    assert [line["gate/sft_share"] for line in metrics_of(run)] == [1.0] * 3 + [0.0] * 4
    assert load_state(checkpoints(run)[-1])["engine"]["steps"] == 4


def lengths(world: Path, *settings: str) -> Sequence[tuple[int, int, str]]:
    config = load_config(world, ["method=sft-then-grpo", *settings])
    return [(stage.first, stage.last, stage.config.method) for stage in stages_of(config)]


def test_stages_are_counts_or_shares_and_carry_settings(world: Path) -> None:
    assert lengths(world, "steps=10") == [(1, 5, "sft"), (6, 10, "grpo")]
    first_two = "{method: sft, steps: 2, settings: {optimizer: {lr: 0.5}}}, {method: luffy, steps: 0.25}"
    stages = f"stages=[{first_two}, {{method: hpt}}]"
    assert lengths(world, "steps=8", stages) == [(1, 2, "sft"), (3, 4, "luffy"), (5, 8, "hpt")]
    first, second, third = stages_of(load_config(world, ["steps=8", stages]))
    assert (first.config.optimizer.lr, second.config.optimizer.lr) == (0.5, 1e-3)
    assert (second.config.off_policy.coef, third.config.off_policy.coef, third.config.steps) == (1.0, 0.0, 4)
    grpo = "{method: grpo, settings: {rl: {advantage: leave_one_out}}}"  # the method has another
    assert load_config(world, ["method=grpo"]).rl.advantage == "mean_std"
    assert stages_of(load_config(world, [f"stages=[{grpo}]"]))[0].config.rl.advantage == "leave_one_out"
    for steps in ("stages=[{method: sft}, {method: grpo}]", "stages=[{method: sft, steps: 4}, {method: grpo}]"):
        with pytest.raises(ConfigError, match=r"stages\.0\.steps"):
            lengths(world, "steps=4", steps)
    with pytest.raises(ConfigError, match=r"stages\.0\.stepz"):
        load_config(world, ["stages=[{method: sft, stepz: 3}]"])


def test_a_method_on_the_command_line_leaves_nothing_of_the_recipes(world: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(world.read_text() + "method: dapo\n")
    assert load_config(recipe).rollout.dynamic_rounds == 4
    chosen = load_config(recipe, ["method=grpo"])
    assert (chosen.rollout.dynamic_rounds, chosen.loss.aggregation, chosen.batch.updates) == (1, "sequence", 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["method=luffy", "rollout.n=1"], ["rollout.n = 1", "off_policy.advantage"]),
        (["method=hpt-offpolicy", "off_policy.coef=0"], ["sft.coef", "off_policy.coef"]),
        (["method=dapo", "gate.kind=both"], ["rollout.dynamic_rounds", 'gate.kind "rl"']),
        (["rl.overlong={cache: 9}"], ["rl.overlong.cache = 9", "8 tokens"]),
        (["rl.overlong={cache: 1.5}"], ["rl.overlong.cache = 1.5", "8 tokens"]),
        (["method=srft", "rl.overlong={cache: 2}"], ["rl.overlong", '"sign"']),
        (["rl.advantage=gae"], ["gae", 'gate.kind "rl"']),
        (["gate.kind=table"], ["gate.table"]),
        (["gate.table=soft-1"], ["gate.table is read by", '"switch"']),
        (["gate.kind=table", "gate.table=[[1]]"], ["gate.table", "[alpha, beta]"]),
        (["gate.kind=table", "gate.table=soft-4"], ["gate.table", "soft-1"]),
    ],
)
def test_settings_that_cannot_work_together(world: Path, settings: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(world, settings)
    assert all(part in str(error.value) for part in expected), error.value
