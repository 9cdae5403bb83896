"""`python -m upge doctor`: what is right, what is wrong, and checks that crash or hang."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from upge.backends.chunked import ChunkedWorkspace
from upge.command_line import main
from upge.commands import doctor as command
from upge.diagnosis import doctor, isolated, machine
from upge.diagnosis.checks import check_values, poisoned_memory
from upge.diagnosis.doctor import Check, Section, is_right, run_check, verdict
from upge.diagnosis.finding import at_most, fault, note
from upge.diagnosis.isolated import run_isolated, side_by_side
from upge.diagnosis.real_shape import check_head

CASES = """
import os, subprocess, sys, time

def finds_something(value):
    yield {"what": "a", "found": value, "held": True}
    yield {"what": "b", "found": "", "held": None}

def crashes():
    yield {"what": "before", "found": "", "held": True}
    os.abort()

def hangs():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child.pid
    time.sleep(600)

def waits(file):
    yield "begun"
    with open(file, "w") as stream:
        print(os.getpid(), file=stream)
    time.sleep(600)

def raises():
    yield from ()
    raise ValueError("no such kernel")

def leaves():
    yield from ()
    sys.exit(3)
"""


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A module with the functions above, which this process and those that it starts can import."""
    (tmp_path / "doctor_cases.py").write_text(CASES)
    monkeypatch.syspath_prepend(tmp_path)
    import doctor_cases

    yield doctor_cases
    del sys.modules["doctor_cases"]


def test_a_function_that_ends_gives_what_it_yielded(cases) -> None:
    outcome = run_isolated(cases.finds_something, 60, value="x")
    assert [row["found"] for row in outcome.results] == ["x", ""]
    assert outcome.fault == ""


def test_a_crash_keeps_what_came_before_and_says_where(cases) -> None:
    section = run_check(Check("kernels", cases.crashes, {}, 60))
    assert [finding["held"] for finding in section.findings] == [True, False]
    assert "was ended by SIGABRT" in section.findings[1]["found"]
    assert "in crashes" in section.findings[1]["found"]


@pytest.mark.slow
def test_a_hang_ends_at_the_limit_with_its_children_and_says_where(cases) -> None:
    outcome = run_isolated(cases.hangs, 25)
    assert outcome.fault == "did not end within 25 seconds"
    assert "in hangs" in outcome.output
    (child,) = outcome.results
    wait_until(lambda: not is_running(child))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends a process with its parent")
def test_a_process_ends_with_the_one_that_started_it(cases, tmp_path: Path) -> None:
    file = tmp_path / "process"
    code = "import sys, doctor_cases; from upge.diagnosis.isolated import run_isolated\n"
    code += "run_isolated(doctor_cases.waits, 600, file=sys.argv[1])"
    path = os.pathsep.join(sys.path)
    parent = subprocess.Popen([sys.executable, "-c", code, str(file)], env=os.environ | {"PYTHONPATH": path})
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(int(file.read_text())))


def test_a_process_ends_soon_after_its_limit_by_itself(cases, tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb") as output:
        arguments = {"file": str(tmp_path / "process")}
        process = isolated._start(cases.waits, 1, {}, arguments, tmp_path / "results", output)
    try:
        assert process.wait(120) == 1
    finally:
        process.kill()
    assert "in waits" in (tmp_path / "output").read_text()
    assert "begun" in (tmp_path / "results").read_text()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(process: int) -> bool:
    """False for a zombie, too: it is dead, and nobody has asked for its exit code."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_interrupt_does_not_wait_for_the_others(cases) -> None:
    def interrupted() -> None:
        while not isolated._running:
            time.sleep(0.05)
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side([interrupted, partial(run_isolated, cases.hangs, 120)], 2))
    assert time.monotonic() - begun < 60  # their limit is 120


def test_an_error_and_an_exit_code_are_faults(cases) -> None:
    assert run_isolated(cases.raises, 60).fault == "ValueError: no such kernel"
    assert run_isolated(cases.leaves, 60).fault == "ended with exit code 3"


def test_a_wrong_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = ChunkedWorkspace.backward

    def wrong(self, rows, statistics, coefficients) -> None:
        backward(self, rows, statistics, coefficients)
        self.gradients.hidden.mul_(1.001)

    assert all(finding["held"] for finding in check_values("cpu", "float32", "torch", n=300))
    assert all(finding["held"] for finding in check_head("cpu", 9000, 20, 80, "float32", "torch"))
    monkeypatch.setattr(ChunkedWorkspace, "backward", wrong)
    for findings in (
        check_values("cpu", "float32", "torch", n=300),
        check_head("cpu", 9000, 20, 80, "float32", "torch"),
    ):
        found = {finding["what"].rpartition(": ")[2]: finding["held"] for finding in findings}
        assert not found["dh"]
        assert found["dW"]
        assert found["log-probabilities"]


def test_not_a_number_is_no_small_error() -> None:
    assert not at_most("dh", float("nan"), 1.0)["held"]
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_a_cpu_everything_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("for machines without a GPU")
    assert main("upge", ["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "GPU: PyTorch sees none" in printed
    assert printed.splitlines()[-1] == "All right: 42 checks of the torch backend. No kernel for GPUs was run."


def test_what_is_wrong_is_shown_and_the_rest_goes_on(
    cases, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("crash", cases.crashes, {}, 60), Check("fine", cases.finds_something, {"value": "x"}, 60)]
    monkeypatch.setattr(doctor, "backend_checks", lambda devices: checks)
    assert command.main([]) == 1
    printed = capsys.readouterr().out
    assert "  WRONG crash: was ended by SIGABRT" in printed
    assert "fine (" in printed
    assert printed.splitlines()[-1] == "Not all right: 1 of 3 checks failed, the first: crash."


def test_a_gpu_without_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version", lambda distribution: None)
    (finding,) = [finding for finding in machine.software(on_gpu=True) if finding["what"] == "triton"]
    assert 'pip install "upge[triton]"' in finding["found"]
    assert finding["held"] is False
    assert all(finding["held"] is None for finding in machine.software(on_gpu=False))


def test_a_gpu_that_pytorch_cannot_use_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "NVIDIA H100, 570.86"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine.nvidia_smi("name", "driver_version") == [["NVIDIA H100", "570.86"]]
    assert machine.why_no_gpu()["held"] is False
    monkeypatch.setenv("PATH", "")
    assert machine.why_no_gpu()["held"] is None


def test_a_verdict_counts_checks_and_not_notes() -> None:
    findings = [note("torch", "2.13"), at_most("dh", 0.0, 1.0)]
    right, on_cpu = Section("triton, bfloat16, bits", findings, 0.0), Section("torch, float32, bits", findings, 0.0)
    assert verdict([right]) == "All right: 1 checks."
    assert verdict([on_cpu]) == "All right: 1 checks of the torch backend. No kernel for GPUs was run."
    wrong = Section("b", [fault("triton", "is not installed")], 0.0)
    assert verdict([right, wrong]) == "Not all right: 1 of 2 checks failed, the first: triton."
    assert is_right([right])
    assert not is_right([right, wrong])


def test_a_reader_that_stops_and_an_interrupt_end_without_a_traceback() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    listing = subprocess.Popen(
        [sys.executable, "-m", "upge"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.close()  # before it prints
    assert (listing.stderr.read(), listing.wait()) == ("", 141)
    code = """
import sys
from unittest import mock
from upge.command_line import main
with mock.patch("upge.commands.doctor.main", side_effect=KeyboardInterrupt):
    sys.exit(main("upge", ["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stderr, done.returncode) == ("upge: interrupted\n", 130)
