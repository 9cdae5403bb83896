"""Where a function of the user's fails inside a step: what is saved, and that it is the last finished step."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hpt.commands.main import main
from hpt.records.checkpoints import checkpoints
from hpt.records.files import RunRecords, read_metrics
from hpt.support.errors import HptError

SETTINGS = ["method=grpo", "steps=2", "eval.every=0", "checkpoint.every=0", "batch.tokens=100"]

FUNCTIONS = """
LAST, calls = None, 0

def counted():
    global calls
    calls += 1
    if calls == LAST: raise KeyError("no such column")

def gate(P):
    counted()
    return 1, 0

def advantage(rewards):
    counted()
    return [group - group.mean() for group in rewards]

def objective(logprobs, batch):
    counted()
    return -batch.advantages * logprobs
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `failing`; what it has fails at call number LAST."""
    (tmp_path / "failing.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    return importlib.import_module("failing")


def weights(run: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(checkpoints(run)[-1] / "model.safetensors").items()}


@pytest.mark.parametrize(
    ("setting", "call"),  # the first of the second step
    [("gate={kind: function, function: failing:gate}", 7), ("rl.advantage=failing:advantage", 2)],
)
def test_a_function_that_fails_before_the_update_leaves_the_last_finished_step(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], functions: Any, setting: str, call: int
) -> None:
    functions.LAST = call
    assert main(["train", str(world), *SETTINGS, setting, f"output={tmp_path / 'run'}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "raised KeyError: 'no such column'" in error
    assert f"Stopped after step 1; continue with: hpt train --resume {tmp_path / 'run'}" in error
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000001"]


def test_a_step_whose_metrics_cannot_be_written_is_not_saved(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunRecords.log

    def log(self: RunRecords, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2:
            raise HptError("No space left on device")
        write(self, metrics)

    run = tmp_path / "run"
    with monkeypatch.context() as full:
        full.setattr(RunRecords, "log", log)
        assert main(["train", str(world), *SETTINGS, "steps=3", "checkpoint.every=1", f"output={run}"]) == 2
    assert [path.name for path in checkpoints(run)] == ["step-000001"]
    assert main(["train", "--resume", str(run)]) == 0
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]


def test_an_objective_that_fails_between_micro_batches_leaves_the_last_finished_step(
    world: Path, tmp_path: Path, functions: Any
) -> None:
    settings = [*SETTINGS, "rl.objective=failing:objective"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", str(world), *settings, f"output={whole}"]) == 0
    calls, functions.calls = functions.calls, 0
    functions.LAST = calls  # the last of the second step: others have left gradients
    assert main(["train", str(world), *settings, f"output={broken}"]) == 2
    assert [path.name for path in checkpoints(broken)] == ["step-000001"]
    assert main(["train", "--resume", str(broken)]) == 0
    assert weights(broken) == weights(whole)


def test_nothing_is_saved_once_an_update_has_changed_the_weights(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], functions: Any
) -> None:
    settings = [*SETTINGS, "rl.objective=failing:objective", "batch.updates=2", "batch.tokens=2000"]
    functions.LAST = 4  # the second update of the second step
    assert main(["train", str(world), *settings, f"output={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "no such column" in error
    assert "continue with" not in error
    assert checkpoints(tmp_path / "run") == []


def test_an_error_that_is_no_message_to_the_user_saves_the_last_finished_step_too(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpt.training.trainer import Trainer

    def broken(trainer: Trainer, experiences: Any) -> Any:
        if trainer.steps_done == 1:
            raise ZeroDivisionError
        return rows(trainer, experiences)

    rows = Trainer.rows
    monkeypatch.setattr(Trainer, "rows", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train", str(world), *SETTINGS, f"output={tmp_path / 'run'}"])
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-000001"]


@pytest.mark.parametrize(
    "setting", ["gate={kind: function, function: exits:f}", "rl.advantage=exits:f", "rl.objective=exits:f"]
)
def test_a_function_that_exits_is_an_error_and_not_the_end_of_the_run(
    setting: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits.py").write_text("import sys\ndef f(*arguments): sys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "exits", raising=False)
    assert main(["train", str(world), *SETTINGS, setting, f"output={tmp_path / 'run'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'exits:f' raised SystemExit: 0" in said
    assert "Stopped after step 0; continue with" in said


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ("logprobs * float('nan')", "its loss must be finite"),
        ("logprobs.sum()", "must return one loss per token"),
        ("-logprobs.detach()", "depends on logprobs"),
        ("3", "a tensor of shape"),
    ],
)
def test_an_objective_that_returns_no_loss_is_named_in_a_sentence(
    returns: str,
    message: str,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "no_loss.py").write_text(f"def f(logprobs, batch): return {returns}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "no_loss", raising=False)
    assert main(["train", str(world), *SETTINGS, "rl.objective=no_loss:f", f"output={tmp_path / 'run'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "objective 'no_loss:f'" in said
    assert message in said
