"""`python -m bench adopt`: steps inside other trainers, theirs and ours."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.adoption import comparison, variants
from bench.adoption.shapes import SHAPES
from bench.commands import adopt
from hpt.support.optional_packages import installed


@pytest.mark.slow
@pytest.mark.skipif(not installed("trl"), reason="TRL is not installed")
def test_all_cases_on_a_tiny_model(bench, tmp_path: Path) -> None:
    """Every number is there, and no gradient differs from that of the trainer as it is."""
    out = tmp_path / "results" / "adopt"
    printed = bench("adopt", "--quick", "--device", "cpu", "--out", str(out))
    report = json.loads(out.with_suffix(".json").read_text())
    assert {name: [row["variant"] for row in report["rows"] if row["case"] == name] for name in variants.CASES} == {
        name: list(case) for name, case in variants.CASES.items()
    }
    for case in variants.CASES:
        first, *others = [row for row in report["rows"] if row["case"] == case]
        assert all(row["seconds"] > 0 and "extra_bytes" in row for row in (first, *others))
        # 2e-5 as for the adapters. 0 would mean that the trainer was compared with itself.
        assert all(0 < row["gradient_difference"] < 2e-5 for row in others)
    settings = report["settings"]
    assert all(settings["versions"][name][0].isdigit() for name in ("torch", "transformers", "trl", "upge"))
    text = out.with_suffix(".md").read_text()
    assert text.strip() == printed.strip()
    assert "| case | trainer | seconds | of first | extra MiB | gradients' difference |" in text
    assert settings["processor"] in text
    assert settings["commit"] in text


class Answers:
    """A worker that does not train. The second variant of a case fails in its second step."""

    def __init__(self, case: str, variant: str, settings: comparison.Settings):
        self.place, self.turn = list(variants.CASES[case]).index(variant), 0

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        self.turn += 1
        if self.place == 1 and self.turn == 2:
            raise comparison.Failed("OutOfMemoryError: no room")
        if "gradients" in request:
            # Norm 5, and apart by norm 1 for each place; the bias is in one file alone.
            gradients = {"weight": torch.tensor([3.0, 4.0])} | ({"bias": torch.tensor(1.0)} if self.place else {})
            torch.save(gradients, request["gradients"])
        if request.get("memory"):
            return {"extra_bytes": 2**20, "peak_bytes": 2**21}
        return {"seconds": [0.0, 0.0, 0.4, 0.2, 0.3][self.turn - 1] / (self.place + 1)}

    def close(self) -> None:
        pass


def test_the_best_step_counts_and_a_trainer_that_fails_is_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison, "_Worker", Answers)
    settings = comparison.Settings(SHAPES["tiny"], "cpu", 3, 1, 60.0)
    first, failed, last, _ = comparison.compare("trl-grpo", settings)
    assert failed["failed"] == "OutOfMemoryError: no room"
    assert first["seconds"] == 0.2
    assert last["of_first"] == pytest.approx(1 / 3)
    assert last["gradient_difference"] == pytest.approx(1 / 5)
    assert adopt.main(["--device", "cpu", "--cases", "trl-grpo", "--repeats", "3"]) == 1
    printed = capsys.readouterr().out
    assert "| within upge's use_logprobs() | OutOfMemoryError: no room |" in printed
    assert "| trl-grpo | upge's GRPOTrainer | 0.067 (+100%) | 0.33 | 1 | 2.0e-01 |" in printed


def test_a_missing_trl_is_a_row_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.adoption.worker import serve

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    for module in [name for name in sys.modules if name.startswith("upge.integrations.trl")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    ours, theirs = multiprocessing.Pipe()
    serve(theirs, "trl-sft", "trl.SFTTrainer", SHAPES["tiny"], 3, "cpu", None)
    assert 'pip install "trl==' in ours.recv()["failed"]


def test_a_process_that_takes_too_long_or_ends_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "IMPORTS", [])
    settings = comparison.Settings(SHAPES["tiny"], "cpu", repeats=1, threads=1, seconds=0.0)
    with (
        comparison._worker("hf-sft", "transformers.Trainer", settings) as worker,
        pytest.raises(comparison.Failed, match="not done after 0 s"),
    ):
        worker.step({})
    assert not worker.process.is_alive()
    monkeypatch.setattr(comparison, "_serve", print)  # ends at once
    settings = dataclasses.replace(settings, seconds=60.0)
    with (
        comparison._worker("hf-sft", "transformers.Trainer", settings) as worker,
        pytest.raises(comparison.Failed, match="ended with exit status 0"),
    ):
        worker.step({})


class NoSteps:
    """Watches nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


def test_a_step_of_hpt_has_the_rows_and_micro_batches_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from bench.adoption.hpt_steps import train
    from hpt.training.metrics import StepStats

    seen = []
    add_batch = StepStats.add_batch

    def watched(stats: StepStats, batch: Any, output: Any) -> None:
        seen.append((len(batch.rows), tuple(batch.input_ids.shape), bool(batch.advantages.all())))
        add_batch(stats, batch, output)

    monkeypatch.setattr(StepStats, "add_batch", watched)
    shape = dataclasses.replace(SHAPES["tiny"], rows=12, length=5, micro_batches=3)
    train(variants.Setup(shape, "cpu", 2, NoSteps(), tmp_path))  # type: ignore[arg-type]
    assert seen == [(4, (4, 16 + 5), True)] * 3 * 2


def test_rows_that_no_batch_can_have_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--rows", "6"], ["--rows", "8", "--micro-batches", "3"]):
        with pytest.raises(SystemExit, match="2"):
            adopt.main(["--quick", *options])
        assert "argument --rows: must be a multiple of 4" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        adopt.main(["--quick", "--rows", "5"])
    assert "of the 2 micro-batches of the shape tiny; got 5" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_time_limit_must_be_above_zero(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        adopt.main(["--seconds", seconds])
    assert f"argument --seconds: must be above 0, got {seconds}" in capsys.readouterr().err


def test_a_time_limit_below_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(adopt, "compare", lambda case, settings: found.append(settings.seconds) or [])
    assert adopt.main(["--quick", "--device", "cpu", "--cases", "hf-sft", "--seconds", "0.5"]) == 0
    assert found == [0.5]


@pytest.mark.parametrize("option", ["--rows", "--length", "--micro-batches", "--repeats", "--threads"])
def test_numbers_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        adopt.main([option, "0"])
    assert f"argument {option}: must be at least 1, got 0" in capsys.readouterr().err
