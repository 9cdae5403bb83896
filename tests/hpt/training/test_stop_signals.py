"""Signals during a run: the first one stops after the step, a second one at once, and afterwards all is as before."""

from __future__ import annotations

import signal

import pytest

from hpt.support.distributed import ALONE, World
from hpt.support.stopping import stop_asked
from hpt.training.stop_signals import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.usefixtures("hang_up")
@pytest.mark.parametrize("number", NUMBERS)
def test_one_signal_stops_after_the_step_and_a_second_one_at_once(number: signal.Signals) -> None:
    earlier = [signal.getsignal(each) for each in NUMBERS]
    with StopSignals(ALONE) as signals:
        signals.training = True
        assert not signals.received()
        signal.raise_signal(number)
        assert signals.received()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert not stop_asked.is_set()  # the next run in this process is not asked to stop
    assert [signal.getsignal(each) for each in NUMBERS] == earlier


def test_before_the_first_step_a_signal_stops_at_once() -> None:
    with StopSignals(ALONE), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_with_several_processes_no_signal_stops_at_once() -> None:
    """Their launcher repeats each signal."""
    with StopSignals(World(0, 2)):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop_asked.is_set()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals(ALONE) as signals:
            signals.training = True
            signal.raise_signal(signal.SIGHUP)
            assert not signals.received()
    finally:
        signal.signal(signal.SIGHUP, earlier)


@pytest.mark.parametrize(("told", "expected"), [((False, True), True), ((False, False), False)])
def test_a_signal_to_one_process_stops_all(
    told: tuple[bool, ...], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(0, 2)
    monkeypatch.setattr(World, "gather", lambda self, own: [own, *told[1:]])
    with StopSignals(world) as signals:
        assert signals.received() is expected
