"""Training on reward functions: their records, a function that fails in the middle, and what a resumed run does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpt.commands.main import main
from hpt.records.checkpoints import checkpoints
from hpt.records.files import read_metrics


def test_a_run_on_rewards_stops_where_one_fails_and_goes_on_where_that_counts_as_none(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LUFFY: the demonstration is a member of the group of 4, so that functions see 3 rollouts and it."""
    folder = tmp_path / "run"
    brief = "{function: 'rewards:minus_length', weight: 0.1}"
    rewards = f"rewards=['rewards:share_of_digits', 'rewards:fails_in_step_2', {brief}]"
    settings = [rewards, "method=luffy", "gate.reads=share_of_digits", "gate.threshold=0.2", "steps=2", "eval.every=0"]
    assert main(["train", str(world), f"output={folder}", "checkpoint.every=0", *settings]) == 2
    said = capsys.readouterr().err
    assert "'rewards:fails_in_step_2' raised ValueError: no luck" in said
    assert "called on 4 completions of line" in said
    assert f"Stopped after step 1; continue with: hpt train --resume {folder}" in " ".join(said.split())
    assert [path.name for path in checkpoints(folder)] == ["step-000001"]
    assert main(["train", "--resume", str(folder), "reward_calls.on_error=none"]) == 0
    first, second = read_metrics(folder)
    assert (first["reward/fails_in_step_2/sum"], first["reward/fails_in_step_2/failures"]) == (18, 0)
    assert (second["reward/fails_in_step_2/count"], second["reward/fails_in_step_2/failures"]) == (0, 6 * 4)
    records = [json.loads(line) for line in (folder / "rollouts" / "step-000002.jsonl").read_text().splitlines()]
    questions = [json.loads(line) for line in world.with_name("train.jsonl").read_text().splitlines()]
    demonstrations = {f"train-{index}": question["demonstration"] for index, question in enumerate(questions)}
    for record in records:
        assert record["rewards"]["fails_in_step_2"] == [None] * 3
        assert record["extra"]["read"] == [*record["responses"], demonstrations[record["id"]]]
        assert record["rewards"]["minus_length"] == [-length for length in record["lengths"]]
        assert record["extra"]["together"][:3] == [4] * 3
        assert record["reward_faults"]["fails_in_step_2"].startswith("raised ValueError: no luck")
        right = [value >= 0.2 for value in record["rewards"]["share_of_digits"]]
        assert (record["scores"], record["P"]) == (right, sum(right) / 3)
    total = sum(value for record in records for value in record["rewards"]["share_of_digits"])
    lengths = sum(length for record in records for length in record["lengths"])
    assert second["reward/sum"] == pytest.approx(total - 0.1 * lengths)


def test_a_broken_reward_is_refused_before_the_model_loads(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpt.training.assemble.make_policy", None)
    (tmp_path / "broken_rewards.py").write_text(
        "def f(completions, **columns): return [x[0]['content'] for x in completions]"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["train", str(world), "rewards=broken_rewards:f", f"output={tmp_path / 'run'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'broken_rewards:f' raised TypeError: string indices must be integers" in said
    assert "tried on the demonstration of line 1 (question train-0) and on the wrong answer 'I do not know.'" in said
    assert "Prompts and completions are strings" in said


def test_rewards_that_never_apply_are_told_once(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["rewards=[rewards:by_a_column]", "method=grpo", "steps=2", "eval.every=0", f"output={tmp_path / 'run'}"]
    assert main(["train", str(world), *settings]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("No reward applies to any of the 24 rollouts of this step") == 1
    assert "RL trains on none of them: None from by_a_column." in said


def test_rewards_without_rollouts_have_no_effect(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpt.training.assemble.make_policy", None)  # ends a run where the model would load
    warning = 'gate.kind "sft" samples no rollouts: rewards have no effect on training'
    stages = "stages=[{method: sft, steps: 1}, {method: grpo}]"
    for number, (setting, expected) in enumerate((("method=sft", True), (stages, False))):
        with pytest.raises(TypeError):
            main(["train", str(world), "rewards=[verifier]", setting, f"output={tmp_path / str(number)}"])
        assert (warning in " ".join(capsys.readouterr().err.split())) == expected
