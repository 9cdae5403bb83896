"""hpt.records.trackers: every tracker gets numbers, the recipe and sample rollouts; errors of one that is missing."""

import sys
from html import unescape
from types import SimpleNamespace

import pytest

from hpt.config.recipe import load_config
from hpt.config.sections.training import TrackConfig
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import BOTH, ONLY_DEMONSTRATION
from hpt.records.journal import Journal
from hpt.records.samples import PROMPT_CHARACTERS, RESPONSE_CHARACTERS, sample_rollouts
from hpt.records.trackers import COLUMNS, as_markdown, open_trackers
from hpt.rollout import Rollout
from hpt.support.distributed import ALONE
from hpt.support.errors import ConfigError, HptError
from hpt.verify import Verdict

NASTY = "| a |\n```<b>`*x*` [l](javascript:x) ![i](http://x) $y$ &lt;"


def track(*names, **settings):
    return TrackConfig(to=list(names), **settings)


def experience(id, *right, text="a response", decision=BOTH):
    """A question with one rollout for each of `right`."""
    rollouts = [
        Rollout(
            [1], [0.0], "stop", text, Verdict("correct" if each else "incorrect", float(each)), advantage=each - 0.5
        )
        for each in right
    ]
    return Experience(Question(id, f"prompt of {id}", "1"), [1], rollouts, decision)


def test_no_tracker_is_fine(tmp_path):
    assert open_trackers(track(), tmp_path, {}) == []


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_tracker_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(HptError, match=rf'track: {name} is not installed; run: pip install "hpt\[{name}\]"'):
        open_trackers(track(name), tmp_path, {})
    assert list(tmp_path.iterdir()) == []


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

    module = SimpleNamespace(
        init=init, Table=lambda columns, data: (columns, data), __spec__=SimpleNamespace(name=name)
    )
    monkeypatch.setitem(sys.modules, name, module)
    return calls, run


def test_trackio_gets_the_numbers(tmp_path, monkeypatch):
    calls, run = fake_service(monkeypatch, "trackio")
    (tracker,) = open_trackers(track("trackio"), tmp_path / "demo", {"seed": 1})
    tracker.log(3, {"step": 3, "train/loss": 0.5, "train/grad_norm": None, "note": "text"})
    tracker.close()
    assert calls == [{"project": "hpt", "name": "demo", "config": {"seed": 1}, "resume": "never"}]
    assert run.logged == [(3, {"train/loss": 0.5})]
    assert run.finished
    open_trackers(track("trackio"), tmp_path / "demo", {"seed": 1}, resume_step=3)
    assert calls[1]["resume"] == "allow"


def test_wandb_goes_on_with_the_same_run_when_resumed(tmp_path, monkeypatch):
    calls, run = fake_service(monkeypatch, "wandb")
    open_trackers(track("wandb"), tmp_path, {})
    open_trackers(track("wandb"), tmp_path, {}, resume_step=5)
    (tracker,) = open_trackers(track("wandb"), tmp_path, {})
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
        open_trackers(track("trackio", "wandb"), tmp_path, {})
    assert run.finished


def test_tensorboard_reads_back_and_a_resumed_run_replaces_later_steps(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(track("tensorboard"), tmp_path, {"seed": 0})
    for step in range(4):
        tracker.log(step, {"step": step, "reward/mean": step / 4, "train/grad_norm": None})
    tracker.close()
    (tracker,) = open_trackers(track("tensorboard"), tmp_path, {"seed": 0}, resume_step=1)
    tracker.log(2, {"step": 2, "reward/mean": 0.75})
    tracker.close()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [
        (0, 0.0),
        (1, 0.25),
        (2, 0.75),
    ]


@pytest.mark.parametrize("short", ["track=wandb", "track=[wandb]", "track={to: wandb}", "track.to=wandb"])
def test_one_name_is_a_list_of_one(world, short):
    assert load_config(world, [short]).track == track("wandb")
    both = load_config(world, [short, "track.every=7", "track.project=mine"])
    assert both.track == track("wandb", every=7, project="mine")
    assert load_config(world, ["track.name=here", short]).track == track("wandb", name="here")


def test_an_unknown_tracker_lists_the_known(world):
    with pytest.raises(ConfigError, match=r"track\.to\.0 = 'mlflow'.*'tensorboard', 'trackio' or 'wandb'"):
        load_config(world, ["track=mlflow"])


def test_project_and_name_are_the_recipes(tmp_path, monkeypatch):
    for name in ("trackio", "wandb"):
        calls, _ = fake_service(monkeypatch, name)
        open_trackers(track(name, project="mine", name="first"), tmp_path, {})
        assert (calls[0]["project"], calls[0]["name"]) == ("mine", "first")


def test_samples_show_questions_that_none_some_and_all_solve():
    experiences = [experience(f"none-{i}", 0, 0, decision=ONLY_DEMONSTRATION) for i in range(5)]
    experiences += [experience("some", 0, 0, 1, text="x" * 5000), experience("all", 1, 1), experience("sft")]
    samples = sample_rollouts(3, experiences)
    shown = [(sample.question, sample.score) for sample in samples]
    assert shown == [("none-0", 0), ("none-1", 0), ("some", 1), ("some", 0), ("all", 1)]
    first, some = samples[0], samples[2]
    assert (first.step, first.prompt, first.status, first.advantage) == (3, "prompt of none-0", "incorrect", -0.5)
    assert (first.gate, some.gate) == ("alpha 0, beta 1", "alpha 1, beta 1")
    assert len(some.response) <= RESPONSE_CHARACTERS + 3
    critic = experience("critic", 1)
    critic.rollouts[0].advantage = [0.0, 1.0]
    critic.question = Question("chat", ({"role": "user", "content": "q" * 999},), "1")
    (sample,) = sample_rollouts(1, [critic])
    assert sample.advantage == 0.5
    mixed = experience("mixed", 0, 1)
    mixed.rollouts[1].rewards = {"f": None}  # to the second, no reward applies: it ranks last
    assert [sample.reward for sample in sample_rollouts(1, [mixed])] == [0.0, None]
    assert len(sample.prompt) <= PROMPT_CHARACTERS + 3


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_table_of_rollouts_every_few_steps(world, tmp_path, monkeypatch, name):
    _, run = fake_service(monkeypatch, name)
    config = load_config(world, [f"track={name}", "track.every=2", f"output={tmp_path / 'run'}"])
    with Journal(config, None, ALONE) as journal:
        for step in (1, 2, 3, 4):
            journal.log_samples(step, [experience("q", 1, 0, text=NASTY)] if step < 4 else [experience("sft")])
        assert not run.finished
    assert run.finished
    ((step, logged),) = run.logged
    columns, rows = logged["rollouts"]
    assert (step, columns, len(rows)) == (2, COLUMNS, 2)
    row = dict(zip(columns, rows[0], strict=True))
    assert (row["step"], row["question"], row["reward"], row["advantage"]) == (2, "q", 1.0, 0.5)
    assert row["response"] == (as_markdown(NASTY) if name == "trackio" else NASTY)


def test_what_a_model_wrote_is_no_markup():
    escaped = as_markdown(NASTY)
    assert not set(escaped.replace("<br>", "")) & set("|\n`<>*[]!$")
    assert unescape(escaped).replace("<br>", "\n") == NASTY


def test_tensorboard_shows_rollouts_as_a_table(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    (tracker,) = open_trackers(track("tensorboard"), tmp_path, {"seed": 0})
    tracker.log_samples(5, sample_rollouts(5, [experience("q", 1, 0, text=NASTY)]))
    tracker.close()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("rollouts/text_summary")
    html = markdown_to_safe_html(event.tensor_proto.string_val[0])
    assert event.step == 5
    assert html.count("<tr>") == 3  # the header and two rollouts
    assert html.count("<td>") == 2 * len(COLUMNS)
    assert not any(tag in html for tag in ("<b>", "<em>", "<img", "<a ", "<code>"))
    assert "*x*" in unescape(html)
