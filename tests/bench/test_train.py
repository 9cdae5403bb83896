"""`python -m bench train` on a tiny model: cases in separate processes, files, time limits, and the plain loss."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from bench.commands import train as bench
from bench.training import synthetic
from bench.training.plain_loss import PlainLoss
from hpt.config.recipe import build_config
from hpt.support.optional_packages import installed


def test_a_case_is_run_and_cases_without_time_left_are_listed(tmp_path: Path) -> None:
    out = tmp_path / "results" / "train"
    options = ["--model", "tiny", "--random-weights", "--tokens", "16", "--questions", "2", "--out", str(out)]
    assert bench.main([*options, "--cases", "80 GB, all weights, 8-bit states, plain logits"]) == 0
    (row,) = json.loads(out.with_suffix(".json").read_text())
    assert "failed" not in row, row
    assert row["trained_tokens"] > 0
    assert bench.main([*options, "--minutes", "0"]) == 0
    rows = json.loads(out.with_suffix(".json").read_text())
    assert [row["case"] for row in rows] == list(bench.CASES)
    assert all("not begun" in row["failed"] for row in rows)
    assert out.with_suffix(".md").read_text().count("not begun") == len(rows)


def test_without_options_it_compares_with_trl_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of the committed table, by `bench adopt`, whose own test runs one."""
    taken: list[list[str]] = []
    monkeypatch.setattr(bench.adopt, "main", lambda options: taken.append(options) or 0)
    assert bench.main(["--out", str(tmp_path / "steps")]) == 0
    assert bench.main([]) == 0
    first, second = taken
    assert first[-2:] == ["--out", str(tmp_path / "steps")]
    written = (Path(__file__).parents[2] / "bench/results/train-cpu.md").read_text().splitlines()[0].strip("`")
    assert written == " ".join(["python -m bench adopt", *second])


def test_options_of_the_other_mode_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--model", "tiny"])
    assert "argument --model: only with --random-weights" in capsys.readouterr().err


@pytest.mark.skipif(installed("trl"), reason="tests the message for a missing trl")
def test_without_trl_its_row_says_what_to_install(tmp_path: Path) -> None:
    out = tmp_path / "train"
    options = ["--model", "tiny", "--random-weights", "--tokens", "16", "--out", str(out)]
    case = "48 GB, LoRA, drawn rollouts, TRL's GRPO"
    assert bench.main([*options, "--cases", case]) == 0
    (row,) = json.loads(out.with_suffix(".json").read_text())
    assert row["case"] == case
    assert "pip install trl" in row["failed"]
    assert "pip install trl" in out.with_suffix(".md").read_text()


def test_a_step_of_trl_trains_on_the_same_prompts(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    from bench.training.trl_step import grpo_step
    from bench.training.word_tokenizer import word_tokenizer

    synthetic.write_random_model(bench.architecture_of("tiny"), torch.bfloat16, "cpu", tmp_path)
    args = Namespace(tokens=8, questions=2)
    config = bench._config(args, tmp_path, bench.DRAWN, None)
    tokenizer = word_tokenizer(512)
    ids = [0, 7, 510, 511, 3]
    assert tokenizer(tokenizer.decode(ids))["input_ids"] == ids
    step = grpo_step(config, prompt=5)
    assert 2 * 8 * (5 + 1) <= step["trained_tokens"] <= 2 * 8 * (5 + 8)
    seconds = step["seconds"]
    assert min(seconds.values()) > 0
    assert seconds["rollout"] + seconds["train"] == pytest.approx(seconds["step"])


def test_a_process_that_fails_or_takes_too_long_is_a_result() -> None:
    failing = [sys.executable, "-c", "raise MemoryError('out of memory')"]
    assert "out of memory" in bench._run(failing, 60)["failed"]
    assert "not done after 1 s" in bench._run(["sleep", "30"], 1)["failed"]


def test_the_plain_loss_equals_the_fused_one(tmp_path: Path) -> None:
    synthetic.write_random_model(bench.architecture_of("tiny"), torch.float32, "cpu", tmp_path)
    config = build_config(
        {
            "output": str(tmp_path / "run"),
            "steps": 1,
            "model": {"path": str(tmp_path)},
            "data": {"train": "none"},
            "verify": {"function": synthetic.REWARD, "workers": 1},
            "rollout": {"n": 2, "max_tokens": 12, "temperature": 0.7},
            "batch": {"questions": 2, "tokens": 64},
            "loss": {"entropy_coef": 0.01},
        },
        source="test",
    )
    with synthetic.synthetic_trainer(config, prompt=4, made_up=True) as trainer:
        rows = bench_rows(trainer)
        found = []
        for loss in (trainer.policy.loss, PlainLoss(trainer.policy)):
            trainer.policy.model.zero_grad()
            total = sum(loss(batch).loss for batch in trainer.micro_batches(rows))
            total.backward()
            found.append((total.item(), [p.grad.clone() for p in trainer.policy.model.parameters()]))
    (fused, fused_gradients), (plain, plain_gradients) = found
    assert plain == pytest.approx(fused, rel=1e-4)
    for a, b in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def bench_rows(trainer: synthetic.Trainer) -> list:
    """Rows of rollouts and of demonstrations, both with a gradient."""
    from hpt.method.gate import Decision
    from hpt.method.rows import token_rows

    experiences = synthetic.full_experiences(trainer)
    for experience in experiences:
        experience.decision = Decision(alpha=1.0, beta=0.5, off=0.0)
    return token_rows(experiences, trainer.config)
