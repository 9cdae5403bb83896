"""`pytest bench --benchmark-only`: every benchmark runs, at the smallest shape."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def test_every_benchmark_runs(python, tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    printed = python("-m", "pytest", "bench", "--benchmark-only", "-k", "rehearsal", "-rs", f"--benchmark-json={out}")
    rows = json.loads(out.read_text())["benchmarks"]
    measured = {row["name"] for row in rows}
    assert {f"test_loss[{case}-rehearsal]" for case in ("sft", "grpo", "hpt")} <= measured
    passes = ["forward[", "logit_gradient[", "backward[hidden-", "backward[weight-"]
    assert {f"test_torch_{name}rehearsal]" for name in passes} <= measured
    assert ("test_triton_forward[rehearsal]" in measured) == torch.cuda.is_available()
    assert torch.cuda.is_available() or "measured on a GPU" in printed
