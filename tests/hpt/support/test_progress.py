"""hpt.support.progress: what a log, a notebook and a terminal get to see."""

from __future__ import annotations

import io
import sys
import types

import pytest
from rich.console import Console

from hpt.support import progress as module
from hpt.support.progress import Progress, clock


def console(monkeypatch: pytest.MonkeyPatch, **kind: bool) -> io.StringIO:
    output = io.StringIO()
    monkeypatch.setattr(module, "console", Console(file=output, width=200, **kind))
    return output


def test_a_log_gets_a_line_for_each_tenth_and_for_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch)
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress("step", 40) as progress:
        for step in range(1, 41):
            now[0] += 70 if step == 3 else 1
            progress.update(step, f"reward {step}")
    lines = output.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        f"step {step}/40" for step in (3, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40)
    ]
    assert lines[0] == "step 3/40  reward 3  14:48 left"  # 72 s for 3 of 40 steps
    assert lines[-1] == "step 40/40  reward 40"


def test_a_resumed_task_counts_only_its_own_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    console(monkeypatch)
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress("step", 10, done=6) as progress:
        assert progress.time_left == ""
        now[0] = 5.0
        progress.update(7)
        assert progress.time_left == "0:15 left"


def test_a_terminal_gets_a_bar_and_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    output = console(monkeypatch, force_terminal=True)
    with Progress("step", 4) as progress:
        progress.update(1, "reward 0.5")
    assert "1/4" in output.getvalue()
    assert "reward 0.5" in output.getvalue()


def test_a_notebook_updates_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, text: str) -> None:
            shown.append(text)

    def display(text: str, *, display_id: bool) -> Handle:
        assert display_id
        shown.append(text)
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display, Pretty=str))
    console(monkeypatch, force_jupyter=True)
    with Progress("step", 2) as progress:
        progress.update(1, "reward 0.5")
        progress.update(2, "reward 0.6\x1b")
    assert shown[0] == "░" * 20 + " step 0/2"
    assert shown[1].startswith("█" * 10 + "░" * 10 + " step 1/2  reward 0.5  ")
    assert shown[2] == "█" * 20 + " step 2/2  reward 0.6␛"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3599.6, "1:00:00"), (90061, "25:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
