"""The benchmark commands: kernels compile for Hopper without spills, the comparison of losses is sound, and the one
call on a GPU runs from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def bench(*command: str) -> str:
    """In a process of its own: the interpreter of the other tests replaces the kernels for good."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "bench", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_compile_for_sm_90(tmp_path):
    report = tmp_path / "kernels.json"
    bench("compile", "--arch", "sm_90", "--dtype", "bfloat16", "--json", str(report))
    results = json.loads(report.read_text())
    assert {r["kernel"] for r in results} == {
        "logits", "hidden", "weight", "finish", "anchor", "reanchor", "rows", "coefficient", "logit_gradient", "bias"
    }  # fmt: skip
    for r in results:
        assert r["stack"] == r["stores"] == r["loads"] == 0
        assert (r["instruction"] == "HGMMA") == (r["kernel"] in ("logits", "hidden", "weight"))


def test_loss_on_a_cpu(tmp_path):
    """Every number is there, ours is exact, and a peer without this loss says so."""
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
    assert out.with_suffix(".png").stat().st_size > 0


def test_gpu_rehearsal(tmp_path, monkeypatch):
    """Every stage of `bench gpu` runs (here in the interpreter and without CUDA), and its checks hold."""
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import gpu

    status = gpu.main(["--rehearse", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [r["error"] for r in report["errors"]] == []
    assert [r["what"] for r in report["checks"] if not r["held"]] == []
    assert status == 0
    assert len(report["checks"]) == 3 * (4 * 4 + 5)
    assert {r["case"] for r in report["methods"] if r["method"] == "upge"} == {"sft", "grpo", "hpt"}
    assert [r["plan"] for r in report["plans"] if "seconds" in r] == list(gpu.SETTINGS)
    assert {"half of the tokens at A = 0: time of GEMMs", "sft: memory"} <= {r["what"] for r in report["targets"]}
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"| {r['what']} |" in text for r in report["targets"])


def test_gpu_stages_that_break_or_come_too_late_are_recorded(tmp_path):
    from bench.gpu import Report

    report = Report(tmp_path, minutes=1)
    report.stage("breaks", 1, lambda: {}["no such kernel"])
    report.stage("late", 120, lambda: report.add("checks", {"what": "never", "held": True}))
    report.add("targets", {"what": "memory", "wanted": "1", "measured": "2", "met": False})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [r["stage"] for r in found["errors"]] == ["breaks", "late"]
    assert found["checks"] == []
    assert "| memory | 1 | 2 | **missed** |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize("tokens", [64, 300, 2048])
def test_the_shares_of_tokens_without_a_signal_are_what_they_say(tokens, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import _problem, loss

    for share in loss.NO_SIGNAL:
        problem = _problem.make("rehearsal", tokens, torch.float32, "cpu", "grpo", share)
        assert float((problem.advantages == 0).float().mean()) == share
