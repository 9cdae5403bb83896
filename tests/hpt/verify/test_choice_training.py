"""Training and evaluation of a run on multiple-choice questions (`verify.kind=choice`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.support.errors import ConfigError
from hpt.verify.choice import grade

CHOICE = ["verify.kind=choice", "verify.function=null"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with the choices b, d and e, which the tiny model can write."""
    lines = [
        {"id": f"q{i}", "prompt": f"{i}=", "answer": "BDE"[i % 3], "demonstration": rf"\boxed{{{'bde'[i % 3]}}}"}
        for i in range(24)
    ]
    path = tmp_path_factory.mktemp("choice") / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def run(world: Path, questions: Path) -> Path:
    """A run whose rollouts have one character, so that some of them are the right letter."""
    folder = questions.parent / "run"
    data = [f"data.train={questions}", f"data.eval={questions}"]
    settings = ["rollout.max_tokens=1", "data.max_demonstration_tokens=24", "batch.questions=12", f"output={folder}"]
    assert main(["train", str(world), *CHOICE, *data, *settings]) == 0
    return folder


def test_rollouts_are_graded_by_their_letters(run: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]) -> None:
    total: Counter[str] = Counter()
    for metrics in metrics_of(run)[1:]:
        rows = [json.loads(row) for row in (run / f"rollouts/step-{metrics['step']:06d}.jsonl").open()]
        expected = [[grade(response, row["answer"])[0] for response in row["responses"]] for row in rows]
        assert [row["scores"] for row in rows] == [[float(one == "correct") for one in group] for group in expected]
        counts = Counter(status for group in expected for status in group)
        for status in ("correct", "incorrect", "unparsable"):
            assert metrics[f"verify/{status}"] == counts[status]
        total += counts
    assert all(total[status] > 0 for status in ("correct", "incorrect", "unparsable"))


def test_hpt_eval_grades_as_the_run_does(run: Path, questions: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(questions), "--n", "4", "--max-tokens", "1", "--output", str(tmp_path)]
    assert main(["eval", str(run), *arguments]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["settings"]["verifier"] == "choice"
    rows = [json.loads(row) for row in (tmp_path / "results.jsonl").open()]
    for row in rows:
        right = sum(grade(response, row["answer"])[0] == "correct" for response in row["responses"])
        assert row["correct"] == right


def test_golds_that_are_no_letters_are_refused_before_the_model_is_loaded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpt.training.assemble.load_policy", None)
    assert main(["train", str(world), *CHOICE, f"output={tmp_path / 'run'}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "line 1 (question train-0): field 'answer' is '0', which the verifier cannot parse" in error
    assert "24 of 24" in error


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("verify.function=rewards:always", 'verify.kind "choice" and verify.function = "rewards:always"'),
        ("verify.boxed=true", 'verify.boxed goes with verify.kind "math"'),
        ("verify.kind=letters", "verify.kind = 'letters'"),
    ],
)
def test_settings_that_do_not_go_together(world: Path, setting: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(world, [*CHOICE, setting])
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], "rewards:has_a_digit"),
        (["verify.boxed=true"], "rewards:has_a_digit"),
        (["verify.function=null"], "math"),
        (["verify.function=null", "verify.boxed=true"], "boxed"),
        (CHOICE, "choice"),
    ],
)
def test_the_name_of_a_verifier(world: Path, settings: list[str], name: str) -> None:
    assert load_config(world, settings).verify.name == name
