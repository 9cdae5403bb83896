"""The examples run, and do what their first lines say."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hpt.commands.main import main
from hpt.config.recipe import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def examples(folder: Path) -> Path:
    """A copy of the examples, as the current folder."""
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    return folder


def run(script: str) -> dict[str, Any]:
    return runpy.run_path(script, run_name="__main__")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_hpt_in_a_plain_loop_learns_by_sft_first_and_then_by_its_rollouts(examples: Path) -> None:
    result = run("sft_and_rl_in_one_call.py")
    assert (result["sft_shares"][0], result["accuracies"][0]) == (1, 0)
    assert result["sft_shares"][-1] == 0
    assert result["accuracies"][-1] > 0.9


def test_dpo_prefers_the_chosen_responses(examples: Path) -> None:
    result = run("dpo.py")
    assert result["margins"][-1] > 5 > result["margins"][0]
    assert result["losses"][-1] < 0.1


def test_sft_in_the_trainer_of_transformers_learns_to_count(examples: Path) -> None:
    result = run("hf_sft.py")
    assert result["losses"][-1] < 0.01 < result["losses"][0]
    assert result["eval_loss"] < 0.01
    assert result["accuracy"] == 1


def test_grpo_by_trl_learns_from_its_rewards(examples: Path) -> None:
    rewards = run("trl_grpo.py")["rewards"]
    assert rewards[-1] > rewards[0] + 0.2


def test_hpt_by_trl_learns_by_sft_first_and_then_by_its_completions(examples: Path) -> None:
    lines = run("trl_hpt.py")["lines"]
    assert (lines[0]["gate/sft_share"], lines[0]["reward"]) == (1, 0)
    assert lines[-1]["gate/sft_share"] < 0.1
    assert lines[-1]["reward"] > 0.6


def test_an_objective_of_ones_own_has_the_coefficients_of_its_formula(examples: Path) -> None:
    by_autograd, by_hand = run("own_objective.py")["main"]()
    torch.testing.assert_close(by_autograd, by_hand)


def test_a_recipe_names_an_objective_of_ones_own(examples: Path) -> None:
    settings = ["rl.objective=own_objective:penalised", "rl.options={per_token: true}", "steps=1"]
    load_config("own_reward.yaml", settings)


def test_a_reward_of_ones_own_is_learnt(examples: Path) -> None:
    assert main(["train", "own_reward.yaml", "steps=12"]) == 0
    lines = metrics(examples / "runs/own_reward")
    assert lines[-1]["reward/mean"] > lines[0]["reward/mean"] + 0.1


def test_reward_functions_in_trls_forms_run_unchanged(examples: Path) -> None:
    assert main(["train", "trl_rewards.yaml", "steps=12"]) == 0
    lines = metrics(examples / "runs/trl_rewards")
    assert lines[-1]["reward/right_sum/mean"] > lines[0]["reward/right_sum/mean"] + 0.1
    assert lines[0]["gate/sft_share"] > lines[-1]["gate/sft_share"]
    for name in ("is_a_number", "unique_characters", "overlong", "judged"):
        assert (lines[-1][f"reward/{name}/count"], lines[-1][f"reward/{name}/failures"]) == (128, 0)
    assert 0 < sum(line["reward/short_for_small/count"] for line in lines) < 12 * 128
    assert "logged/empty/mean" in lines[-1]


def test_a_user_of_trl_trains_in_python(examples: Path) -> None:
    run("trl_rewards_in_python.py")
    lines = metrics(examples / "runs/trl_rewards_in_python")
    weights = {"right": 1.0, "unique_characters": 0.1, "soft_overlong_punishment_reward": 1.0}
    assert lines[-1]["reward/mean"] > lines[0]["reward/mean"] + 0.3
    for line in lines:
        parts = [weight * line[f"reward/{name}/sum"] for name, weight in weights.items()]
        assert line["reward/mean"] == pytest.approx(sum(parts) / 128)
        assert not any(line[f"reward/{name}/failures"] for name in weights)


def test_a_gate_of_ones_own_decides(examples: Path) -> None:
    assert main(["train", "own_gate.yaml", "steps=1"]) == 0
    (rollouts,) = (examples / "runs/own_gate/rollouts").iterdir()
    for line in rollouts.read_text().splitlines():
        question = json.loads(line)
        assert (question["alpha"], question["beta"]) == (question["P"], 1 - question["P"])


def test_conversations_are_imitated_turn_by_turn_and_then_answered(examples: Path) -> None:
    assert main(["train", "chat_sft_then_hpt.yaml", "steps=12"]) == 0
    lines = metrics(examples / "runs/chat")
    # 25 conversations, 2 turns each, a digit and the end token a turn.
    assert [(line["gate/sft_share"], line["train/tokens"]) for line in lines[:6]] == [(1, 100)] * 6
    assert lines[5]["train/loss"] < lines[0]["train/loss"] - 0.5
    assert all(line["gate/sft_share"] < 1 and line["reward/mean"] > 0 for line in lines[6:])


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_it_shows(script: Path) -> None:
    text = script.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 70
