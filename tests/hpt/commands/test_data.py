"""`hpt data`: what a run would see, on one page, without a model's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hpt.commands.main import main

GOOD = {"prompt": "1+1=", "answer": "2", "demonstration": "\\boxed{2}"}


@pytest.fixture
def weightless(world: Path, tmp_path: Path) -> Path:
    """A model folder without weights."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(world.parent / "model", tmp_path / "model", ignore=ignore))


def write(path: Path, *records: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def describe(capsys: pytest.CaptureFixture[str], world: Path, model: Path, *arguments: str) -> tuple[int, str]:
    usual = [f"model.path={model}", "verify.function=null", "eval.every=0", "data.eval=null"]
    code = main(["data", str(world), *usual, *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_one_page_says_what_a_run_would_see(
    world: Path, weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(
        tmp_path / "t.jsonl",
        GOOD | {"level\x1b[2J[/b]": 3},
        GOOD | {"demonstration": "\\boxed{3}"},
        GOOD | {"prompt": "2+2=", "answer": "4", "demonstration": "4" * 30},
        GOOD | {"prompt": "3+3=", "answer": "6", "demonstration": "\\boxed{6}"},
    )
    held_out = write(tmp_path / "h.jsonl", {"prompt": "1+1=", "answer": "2"}, {"prompt": "9+9=", "answer": "18"})
    settings = [f"data.train={train}", f"data.eval={held_out}", "--rows", "1"]
    code, text = describe(capsys, world, weightless, *settings)
    assert code == 0
    assert f"{train} 4 4 4 1".split() in [line.split() for line in text.splitlines()]
    assert f"{held_out} (eval) 2 2 0 -".split() in [line.split() for line in text.splitlines()]
    assert "Demonstrations, in tokens: median 10, longest 31, limit 24" in text
    assert "too long" in next(line for line in text.splitlines() if line.startswith("  30 to"))
    assert "Questions with the prompt of an earlier one: 1" in text
    assert "Held-out questions with the prompt of a training question: 1" in text
    assert f"{train}: columns for reward functions only: level␛[2J[/b]" in text
    assert f"{train}: answers that the verifier cannot parse: 0 of 4 checked" in text
    assert "The verifier refuses the final answer of 1 of 3 demonstrations: 1 incorrect; questions #2" in text
    assert text.count("Prompt of question") == 1
    assert "Demonstration: 10 tokens, trained, the last one <eos> (1)\n\\boxed{" in text
    code, text = describe(capsys, world, weightless, *settings, "--check", "0", "--rows", "0")
    assert (code, "verifier" in text, "Prompt of" in text) == (0, False, False)


@pytest.mark.parametrize("check", ["2000", "1", "0"])
def test_rows_are_those_that_remain_where_wrong_demonstrations_are_dropped(
    world: Path, weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], check: str
) -> None:
    wrong = GOOD | {"demonstration": "3"}
    train = write(tmp_path / "t.jsonl", wrong, wrong, GOOD, wrong)
    drop = [f"data.train={train}", "data.wrong_demonstrations=drop", "batch.questions=4"]
    code, text = describe(capsys, world, weightless, *drop, "--rows", "4", "--check", check)
    shown = {line.split(":")[0] for line in text.splitlines() if line.startswith("Prompt of question")}
    assert code == 0
    if check == "0":
        assert "Not verified: the rows may show what data.wrong_demonstrations=drop leaves out" in text
        return
    left = "1 of 4 questions remain, 1 of them with a demonstration"
    assert f"data.wrong_demonstrations=drop leaves them out: {left}" in text
    assert shown == {"Prompt of question #3"}


def test_questions_without_a_demonstration_are_counted_and_shown_as_rollouts(
    world: Path, weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "t.jsonl", GOOD | {"demonstration": "3"}, GOOD, GOOD | {"demonstration": None})
    keep = ["data.missing_demonstrations=rollouts", "data.wrong_demonstrations=rollouts", "batch.questions=3"]
    code, text = describe(capsys, world, weightless, f"data.train={train}", *keep, "--rows", "3")
    assert code == 0
    assert f"{train}: 1 of 3 questions have no demonstration: RL alone trains on them" in text
    assert f"{train} 3 3 2 0".split() in [line.split() for line in text.splitlines()]
    left = "3 of 3 questions remain, 1 of them with a demonstration"
    assert f"data.wrong_demonstrations=rollouts leaves them out: {left}" in text
    assert (text.count("Demonstration: "), text.count("Response: sampled by the model")) == (1, 2)


@pytest.mark.parametrize(
    ("records", "settings", "expected"),
    [
        ([GOOD, GOOD | {"answer": "\\frac{"}], [], "has answers that the verifier cannot parse"),
        ([GOOD | {"demonstration": "3"}], ["data.wrong_demonstrations=error"], "the verifier refuses demonstrations"),
        ([GOOD | {"demonstration": "3"}], ["data.wrong_demonstrations=drop"], "the verifier refuses every"),
        ([GOOD, GOOD | {"prompt": "1" * 9}], ["data.max_prompt_tokens=5", "data.too_long=error"], "are too long"),
        ([GOOD], ["data.max_prompt_tokens=1"], "every question is longer than the limits"),
    ],
)
def test_what_a_run_would_refuse_is_said_and_is_the_exit_code(
    world: Path,
    weightless: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    records: list[dict[str, object]],
    settings: list[str],
    expected: str,
) -> None:
    train = write(tmp_path / "t.jsonl", *records)
    code, text = describe(capsys, world, weightless, f"data.train={train}", *settings)
    assert code == 1
    assert expected in next(line for line in text.splitlines() if line.startswith("A run would stop: "))


def test_a_stage_sees_what_it_trains_on(
    world: Path, weightless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "t.jsonl", GOOD, GOOD)
    stages = "stages=[{method: sft, steps: 1}, {method: grpo}]"
    code, text = describe(capsys, world, weightless, f"data.train={train}", stages, "--check", "0")
    assert code == 0
    sft, grpo = text.split("Stage 2 of 2 (grpo), steps 2 to 4")
    assert "Stage 1 of 2 (sft), steps 1 to 1" in sft
    assert "Demonstration: " in sft
    assert "Response: sampled by the model" in grpo


def test_data_that_cannot_be_read(world: Path, weightless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = describe(capsys, world, weightless, "data.train=nowhere.jsonl")
    assert (code, "nowhere.jsonl: no such file" in text) == (2, True)
    code, text = describe(capsys, world, weightless, "data.train=nowhere.jsonl", "prepare=rewards:always")
    assert "this recipe's prepare (rewards:always) makes it" in " ".join(text.split())
