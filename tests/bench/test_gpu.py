"""`python -m bench gpu`: all stages run from end to end, and failures are recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench.commands import gpu
from bench.gpu.report import Report
from bench.gpu.stages import TILINGS


@pytest.mark.usefixtures("row_independent_dot")
def test_gpu_rehearsal(tmp_path: Path) -> None:
    """Every stage of `bench gpu` runs (here in the interpreter and without CUDA), and its checks hold."""
    status = gpu.main(["--rehearse", "--output", str(tmp_path)])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [r["error"] for r in report["errors"]] == []
    assert [r["what"] for r in report["checks"] if not r["held"]] == []
    assert status == 0
    assert len(report["checks"]) == 3 * (4 * 4 + 5)
    assert {r["case"] for r in report["methods"] if r["method"] == "upge"} == {"sft", "grpo", "hpt"}
    assert [r["plan"] for r in report["plans"] if "seconds" in r] == list(TILINGS)
    assert {"half of the tokens at A = 0: time of GEMMs", "sft: memory"} <= {r["what"] for r in report["targets"]}
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"| {r['what']} |" in text for r in report["targets"])


def test_stages_that_fail_or_start_too_late_are_recorded(tmp_path: Path) -> None:
    report = Report(tmp_path, minutes=1)
    report.stage("breaks", 1, lambda: {}["no such kernel"])
    report.stage("late", 120, lambda: report.add("checks", {"what": "never", "held": True}))
    report.add("targets", {"what": "memory", "wanted": "1", "measured": "2", "met": False})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [r["stage"] for r in found["errors"]] == ["breaks", "late"]
    assert found["checks"] == []
    assert "| memory | 1 | 2 | **missed** |" in (tmp_path / "gpu.md").read_text()
