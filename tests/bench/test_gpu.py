"""`python -m bench gpu`: all stages run from end to end, and failures are recorded."""

from __future__ import annotations

import importlib
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from upge.backends.triton.kernels.bias import bias_kernel
from upge.diagnosis.isolated import Outcome

from bench.commands import gpu
from bench.gpu.clocks import summary
from bench.gpu.compile_ahead import compiling_only
from bench.gpu.rehearsal import crash
from bench.gpu.report import Report
from bench.gpu.schedule import Stage, run_stages


@pytest.mark.slow
def test_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stage runs, here in the interpreter; the checks hold, and a crash and a hang are recorded."""
    assert gpu.main(["--rehearse", "--minutes", "60", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    faults = {r["stage"]: r["fault"] for r in report["stages"] if r["fault"]}
    assert faults == {"a crash": "was ended by SIGABRT", "a hang": "did not end within 25 seconds"}
    assert [r["what"] for r in report["checks"] if r["held"] is False] == []
    before = {"before the crash", "before the hang"}
    assert before < {r["what"] for r in report["checks"]}
    assert len(report["checks"]) - len(before) == 3 * (4 * 4 + 5)  # three dtypes
    assert len(report["heads"]) == 5 * (1 + 3 + 1)  # smoke test, three token counts, float16
    assert all(r["held"] for r in report["heads"])
    assert {r["gemm"] for r in report["gemms"]} == {"h W^T", "G W", "G^T h"}
    assert {r["case"] for r in report["methods"] if r["method"] == "upge"} == {"sft", "grpo", "hpt"}
    assert {r["of"] for r in report["candidates"]} == {"logits", "hidden", "weight"}
    assert [r for r in report["candidates"] if "fault" in r] == []
    assert {r["gemm"]["kernel"] for r in report["candidates"] if r["of"] == "weight" and r["gemm"]} == {
        "pointers", "descriptors"
    }  # fmt: skip
    text = (tmp_path / "gpu.md").read_text()
    for what in ("half of the tokens at A = 0: time of GEMMs", "sft: memory", "hpt: time of pytorch"):
        assert f"| {what} |" in text
    assert text.startswith("A rehearsal on a CPU, no measurement")
    assert text.rstrip() in capsys.readouterr().out


def late() -> Iterator[Any]:
    yield {"what": "never", "found": "", "held": True}


def test_stages_that_crash_or_start_too_late_are_recorded(tmp_path: Path) -> None:
    report = Report(tmp_path, {"shape": "rehearsal"})
    crashing = Stage("crashes", "checks", crash, {}, needs=1, limit=60)
    run_stages([crashing, Stage("late", "checks", late, {}, needs=120, limit=120)], report, 1, {})
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["what"] for row in found["checks"]] == ["before the crash"]
    crashed, not_started = (row["fault"] for row in found["stages"])
    assert crashed == "was ended by SIGABRT"
    assert not_started.startswith("not started: it needs about 120 s")
    assert "| late |  |  |  | not started" in (tmp_path / "gpu.md").read_text()


def test_a_stage_ends_at_the_deadline_of_the_whole(tmp_path: Path) -> None:
    report = Report(tmp_path, {"shape": "rehearsal"})
    start = time.monotonic()
    run_stages([Stage("hangs", "checks", gpu.rehearsal.hang, {}, needs=1, limit=600)], report, 0.2, {})
    assert time.monotonic() - start < 60
    assert report.faults["hangs"].startswith("did not end within")


INTERRUPTING = """
import os, signal, time

def interrupts():
    yield {"what": "before the interrupt", "found": "", "held": True}
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(600)
"""


def test_an_interrupt_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "interrupting.py").write_text(INTERRUPTING)
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("interrupting").interrupts
    report = Report(tmp_path / "results", {"shape": "rehearsal"})
    planned = [Stage(name, "checks", function, {}, needs=1, limit=60) for name in ("first", "second")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of pytest-xdist ignore it
    try:
        assert gpu.measure(planned, report, 10, {}, set()) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    found = json.loads((tmp_path / "results" / "gpu.json").read_text())
    assert [row["what"] for row in found["checks"]] == ["before the interrupt"]
    assert [(row["stage"], row["fault"]) for row in found["stages"]] == [("first", "interrupted")]
    assert f"interrupted; what was found is in {tmp_path / 'results'}" in capsys.readouterr().err


def test_a_report_that_is_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(tmp_path, {"shape": "rehearsal"})
    before = (tmp_path / "gpu.json").read_text()

    def full_disk(file: Path, text: str, **options: Any) -> None:
        file.write_bytes(text[:20].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space"):
        report.add("checks", {"what": "a", "found": "", "held": True})
    assert (tmp_path / "gpu.json").read_text() == before


def test_a_rehearsal_does_not_replace_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpu, "run_stages", lambda *arguments: None)
    gpu.main(["--rehearse"])
    (file,) = tmp_path.glob("*/gpu.json")
    assert f"the results of this rehearsal go to {file.parent}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "0"], "argument --tokens: must be at least 1, got 0"),
        (["--repeats", "-3"], "argument --repeats: must be at least 1, got -3"),
        (["--minutes", "0"], "argument --minutes: must be positive and finite, got 0"),
        (["--minutes", "nan"], "argument --minutes: must be positive and finite, got nan"),
        (["--output", __file__], f"argument --output: must be a folder, got the file {__file__}"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main([*arguments, "--rehearse"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_without_a_gpu_a_rehearsal_is_offered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "run_isolated", lambda *arguments: Outcome([], "", "", 0.0))
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "bench gpu: PyTorch sees no GPU here; --rehearse runs all stages on a CPU\n"


def test_each_launch_is_compiled_by_one_worker_and_none_runs() -> None:
    totals = torch.zeros(4)

    def launch() -> None:
        for block in (16, 32, 64):
            bias_kernel[(1,)](torch.ones(4, 4), torch.ones(4), totals, 4, 4, 4, BM=block, BN=16)

    compiled = []
    for worker in range(2):
        with compiling_only(worker, 2) as rows:
            launch()
            launch()
        compiled.append(len(rows))
    assert compiled == [2, 1]
    assert not totals.any()
    launch()
    assert totals.any()


def test_clocks_are_those_of_a_busy_gpu() -> None:
    samples = "345, 90.1, 0\n1980, 640.5, 100\n1755, 699.0, 98\n[N/A], 1, 99\n1980, 6"
    assert summary(samples) == {"clock_mhz": [1755.0, 1980.0], "power_w": 699.0}
    assert summary("") == {}


def test_a_missed_target_is_shown(tmp_path: Path) -> None:
    report = Report(tmp_path, {"shape": "qwen2.5-7b"})
    row = {"shape": "qwen2.5-7b", "case": "sft", "method": "upge", "seconds": 1.0, "of_gemms": 1.2, "extra_bytes": 9}
    report.add("methods", row | {"shape": "llama-3.1-8b", "of_gemms": 1.0}, row)
    text = (tmp_path / "gpu.md").read_text()
    assert "| sft: time of three bare GEMMs | at most 1.15 x | 1.20 x | **missed** |" in text
    assert text.count("sft: memory") == 1
    rehearsal = Report(tmp_path, {"shape": "qwen2.5-7b"}, rehearsal=True)
    rehearsal.add("methods", row)
    assert "| sft: time of three bare GEMMs | at most 1.15 x | not measured | |" in rehearsal.text()


def test_compiled_kernels_are_counted(tmp_path: Path) -> None:
    report = Report(tmp_path, {"shape": "qwen2.5-7b"})
    report.add("compiled", {"kernel": "a", "seconds": 1.4}, {"kernel": "b", "seconds": 2.0})
    assert report.text().endswith("2 kernels were compiled ahead, in 3 s of all processes")
