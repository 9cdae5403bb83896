"""`bench faults` leaves nothing behind. What its cases find is in bench/results/faults.md."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.commands import faults

CASES = """
import os, sys, time
from pathlib import Path
from bench.faults.cases import Case
from bench.faults.runner import run_cases

folder = Path(sys.argv[1])

def check(place):
    if os.fork() == 0:
        os.setsid()
        (folder / "started").write_text(str(os.getpid()))
        time.sleep(600)
    time.sleep(600)

run_cases([Case("kills", "sleeps", "nothing", check)], folder, folder, folder, seed=0, jobs=1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bench faults needs Linux")
def test_ending_bench_faults_ends_its_cases_and_all_that_they_started(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", CASES, str(tmp_path)])
    started = tmp_path / "started"
    while not (started.exists() and started.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--jobs", "0"], "--jobs"), (["--kills", "-1"], "--kills"), (["--only", "nope", "--list"], "no case has this")],
)
def test_arguments_without_sense_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        faults.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
