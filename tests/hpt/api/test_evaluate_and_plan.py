"""hpt.evaluate and hpt.plan: objects and names, results, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hpt
from hpt.memory import MemoryPlan

QUICK = {"style": "plain", "max_tokens": 8, "n": 2}


def has_a_box(response: str, answer: str) -> bool:
    return "{" in response


def test_data_by_name_and_as_objects_give_the_same_result(world: Path, tmp_path: Path) -> None:
    file = world.parent / "eval.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    model = world.parent / "model"
    named = hpt.evaluate(model, file, verifier="rewards:has_a_digit", output=tmp_path / "out", **QUICK)
    given = hpt.evaluate(model, rows, verifier="rewards:has_a_digit", **QUICK)
    assert isinstance(named, type(given))
    assert named.shares == given.shares
    assert repr(named).startswith(f"EvalResult(6 questions, avg@2 {100 * named.accuracy:.1f}%, 95% interval ")
    assert 0 < named.accuracy == json.loads((tmp_path / "out" / "summary.json").read_text())["avg@2"]["mean"]
    several = hpt.evaluate(model, [file, world.parent / "train.jsonl"], verifier="rewards:has_a_digit", **QUICK)
    assert list(several) == ["eval", "train"]
    assert several["eval"].shares == named.shares


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"n": 0}, "n = 0: input should be greater than or equal to 1"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"topp": 0.5}, "topp = 0.5: extra inputs are not permitted"),
        ({"n": 2, "k": [4]}, "pass@k needs k <= n"),
    ],
)
def test_wrong_settings_are_named(world: Path, settings: dict[str, object], expected: str) -> None:
    with pytest.raises(hpt.HptError, match=f"(?i){expected}"):
        hpt.evaluate(world.parent / "model", world.parent / "eval.jsonl", **settings)


def test_no_data_is_named(world: Path) -> None:
    with pytest.raises(hpt.HptError, match="nothing to evaluate on: data is an empty list"):
        hpt.evaluate(world.parent / "model", data=[])


def test_a_printed_plan_is_the_table(world: Path) -> None:
    plan = hpt.plan(world, hardware={"gpu_memory_gib": 80}, device="cuda")
    assert isinstance(plan.memory, MemoryPlan)
    assert plan.fits
    assert plan.peak == plan.memory.peak
    assert "optimizer states" in str(plan)
    assert "fits into 80.0 GiB" in str(plan)
    assert not hpt.plan(world, hardware={"gpu_memory_gib": 0.001}, device="cuda").fits
