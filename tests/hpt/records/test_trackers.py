"""hpt.records.trackers: errors of a missing or refusing tracker; every tracker gets the numbers of each step."""

import sys
from types import SimpleNamespace

import pytest

from hpt.records.trackers import open_trackers
from hpt.support.errors import HptError


def test_no_tracker_is_fine(tmp_path):
    assert open_trackers([], tmp_path, {}) == []


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_tracker_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(HptError, match=rf'track: {name} is not installed; run: pip install "hpt\[{name}\]"'):
        open_trackers([name], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_lists_the_known(tmp_path):
    with pytest.raises(HptError, match="'mlflow'; allowed: tensorboard, trackio, wandb"):
        open_trackers(["mlflow"], tmp_path, {})


class FakeRun:
    def __init__(self):
        self.logged, self.finished = [], False

    def log(self, metrics, step):
        self.logged.append((step, metrics))

    def finish(self):
        self.finished = True


def fake_service(monkeypatch, name):
    """A stand-in for a tracking package that records how it was called."""
    calls, run = [], FakeRun()

    def init(**arguments):
        calls.append(arguments)
        return run

    module = SimpleNamespace(init=init, __spec__=SimpleNamespace(name=name))
    monkeypatch.setitem(sys.modules, name, module)
    return calls, run


def test_trackio_gets_the_numbers(tmp_path, monkeypatch):
    calls, run = fake_service(monkeypatch, "trackio")
    (tracker,) = open_trackers(["trackio"], tmp_path / "demo", {"seed": 1})
    tracker.log(3, {"step": 3, "train/loss": 0.5, "train/grad_norm": None, "note": "text"})
    tracker.close()
    assert calls == [{"project": "hpt", "name": "demo", "config": {"seed": 1}, "resume": "never"}]
    assert run.logged == [(3, {"train/loss": 0.5})]
    assert run.finished
    open_trackers(["trackio"], tmp_path / "demo", {"seed": 1}, resume_step=3)
    assert calls[1]["resume"] == "allow"


def test_wandb_goes_on_with_the_same_run_when_resumed(tmp_path, monkeypatch):
    calls, run = fake_service(monkeypatch, "wandb")
    open_trackers(["wandb"], tmp_path, {})
    open_trackers(["wandb"], tmp_path, {}, resume_step=5)
    (tracker,) = open_trackers(["wandb"], tmp_path, {})
    tracker.log(6, {"step": 6, "reward/mean": 1})
    first, resumed, fresh = (call["id"] for call in calls)
    assert first == resumed != fresh
    assert run.logged == [(6, {"reward/mean": 1})]


def test_a_refusing_service_is_named_and_the_others_are_closed(tmp_path, monkeypatch):
    _, run = fake_service(monkeypatch, "trackio")

    def refuse(**arguments):
        raise RuntimeError("no API key configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, __spec__=SimpleNamespace(name="wandb")))
    with pytest.raises(HptError, match="track: wandb could not start: no API key configured"):
        open_trackers(["trackio", "wandb"], tmp_path, {})
    assert run.finished


def test_tensorboard_reads_back_and_a_resumed_run_replaces_later_steps(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(["tensorboard"], tmp_path, {"seed": 0})
    for step in range(4):
        tracker.log(step, {"step": step, "reward/mean": step / 4, "train/grad_norm": None})
    tracker.close()
    (tracker,) = open_trackers(["tensorboard"], tmp_path, {"seed": 0}, resume_step=1)
    tracker.log(2, {"step": 2, "reward/mean": 0.75})
    tracker.close()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [
        (0, 0.0),
        (1, 0.25),
        (2, 0.75),
    ]
