"""`python -m bench loss`: the comparison with other implementations of the loss."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from bench.losses import comparison
from bench.losses.comparison import NO_SIGNAL, Settings, compare
from bench.losses.problem import make_problem


@pytest.mark.slow
def test_loss_on_a_cpu(bench, tmp_path: Path) -> None:
    """Every number is there, upge is exact, and a peer that lacks this loss says so."""
    options = ("--tokens", "64", "--repeats", "1", "--device", "cpu", "--dtype", "float32", "--threads", "1")
    out = tmp_path / "loss"
    printed = bench("loss", *options, "--cases", "hpt", "--peers", "pytorch", "liger-kernel", "--out", str(out))
    report = json.loads(out.with_suffix(".json").read_text())
    rows = {r["method"]: r for r in report["methods"]}
    assert set(rows) == {"gemms", "upge", "pytorch", "liger-kernel"}
    assert "SFT and GRPO rows in one call" in rows["liger-kernel"]["unavailable"]
    for method in ("upge", "pytorch"):
        assert rows[method]["seconds"] > 0
        assert max(rows[method]["dh_error"], rows[method]["dw_error"]) <= 2e-5
    assert [r["no_signal"] for r in report["no_signal"]] == [0.0, 0.25, 0.5, 0.75]
    assert out.with_suffix(".md").read_text().strip() == printed.strip()
    settings = report["settings"]
    assert settings["command"].startswith("python -m bench loss --tokens 64 ")
    assert f"`{settings['command']}`, commit {settings['commit']}" in printed
    assert f"| hpt | upge | {1e3 * rows['upge']['seconds']:.2f} |" in printed  # milliseconds
    assert out.with_suffix(".png").stat().st_size > 0


def test_the_best_rounds_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of two runs each; the n-th run is said to take n seconds."""
    clock = itertools.count(1)
    monkeypatch.setattr(comparison, "seconds", lambda run, device: float(next(clock)))
    gemms, upge = compare(Settings("rehearsal", 64, "float32", "cpu", repeats=3), "sft", peers=[])
    assert sorted(gemms["seconds_all"] + upge["seconds_all"]) == [1, 2, 3, 4, 5, 6]
    for row in (gemms, upge):
        times = sorted(row["seconds_all"])
        assert [row["seconds"], row["seconds_median"], row["seconds_slowest"]] == times
        assert [(time - 1) // 2 for time in times] == [0, 1, 2]  # once in every round
        assert row["of_gemms"] == row["seconds"] / min(gemms["seconds_all"])


@pytest.mark.parametrize("tokens", [64, 300, 2048])
def test_the_shares_of_tokens_without_a_signal_are_exact(tokens: int) -> None:
    for share in NO_SIGNAL:
        problem = make_problem("rehearsal", tokens, torch.float32, "cpu", "grpo", share)
        assert float((problem.advantages == 0).float().mean()) == share
