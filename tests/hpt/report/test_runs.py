"""hpt.report: what it reads of a run, and how runs form groups."""

import json

import numpy as np
import pytest
from written_run import write_run

from hpt.records.files import read_metrics
from hpt.report import report, summary_figure
from hpt.report.curves import Curve
from hpt.report.runs import group_runs, load_runs
from hpt.support.errors import HptError


def test_a_smoothed_value_is_the_ratio_of_the_sums_over_a_window():
    above, below = np.array([1.0, 0, 9, 2, 5]), np.array([1.0, 10, 10, 0, 5])
    curve = Curve(np.arange(5), above, below)
    expected = [1 / 11, 10 / 21, 11 / 20, 16 / 15, 7 / 5]  # the mean of means would begin with (1/1 + 0/10) / 2
    np.testing.assert_allclose(curve.values(3), expected, rtol=1e-15)
    np.testing.assert_array_equal(curve.values(), [1.0, 0.0, 0.9, np.nan, 1.0])


def test_the_window_is_odd_and_never_wider_than_the_run():
    for size in [*range(1, 400), 5000]:
        curve = Curve(np.arange(size), np.ones(size), np.ones(size))
        assert curve.window % 2 == 1
        assert curve.window <= min(size, 25)
        np.testing.assert_array_equal(curve.values(curve.window), np.ones(size))


def test_a_groups_curve_adds_up_its_runs_at_their_common_steps(tmp_path):
    write_run(tmp_path / "a", seed=0, steps=12)
    write_run(tmp_path / "b", seed=1, steps=12, done=9)
    (group,) = group_runs(load_runs([tmp_path / "a", tmp_path / "b"]))
    curve = group.curve("reward/sum", "reward/count")
    assert curve.steps.tolist() == list(range(1, 10))
    a, b = (read_metrics(tmp_path / name)[1:10] for name in "ab")
    for value, x, y in zip(curve.values(), a, b, strict=True):
        assert value == (x["reward/sum"] + y["reward/sum"]) / (x["reward/count"] + y["reward/count"])


def test_a_null_is_left_out_and_not_read_as_zero(tmp_path):
    folder = write_run(tmp_path / "run", steps=4)
    lines = read_metrics(folder)
    lines[2]["train/grad_norm"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = load_runs([folder])
    curve = run.curve("train/grad_norm", None)
    assert curve.steps.tolist() == [1, 3, 4]
    assert curve.values().tolist() == [lines[step]["train/grad_norm"] for step in (1, 3, 4)]


def test_runs_are_grouped_by_settings_and_not_by_seed_or_folder(tmp_path):
    gammas = [
        write_run(tmp_path / f"g{g}-{s}", seed=s, gate={"kind": "switch", "gamma": g}) for g in (0, 2) for s in (0, 1)
    ]
    grpo = write_run(tmp_path / "grpo", "grpo")
    groups = group_runs(load_runs([*gammas, grpo, gammas[0]]))
    assert [(group.label, [run.name for run in group.runs]) for group in groups] == [
        ("hpt, gate.gamma=0", ["g0-0", "g0-1"]),
        ("hpt, gate.gamma=2", ["g2-0", "g2-1"]),
        ("grpo", ["grpo"]),
    ]


def test_runs_of_one_name_are_told_apart_by_their_path(tmp_path):
    folders = [write_run(tmp_path / name / "demo", steps=1) for name in "ab"]
    assert [run.name for run in load_runs(folders)] == ["a/demo", "b/demo"]


@pytest.mark.parametrize(
    ("missing", "message"), [("metrics.jsonl", r"it has no metrics\.jsonl"), ("config.yaml", r"it has no config\.yaml")]
)
def test_a_folder_that_is_no_run_is_named(tmp_path, missing, message):
    folder = write_run(tmp_path / "run", steps=1)
    (folder / missing).unlink()
    with pytest.raises(HptError, match=f"{folder} is not a run: {message}"):
        report([folder])
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.jsonl", "", r"metrics\.jsonl has no steps yet"),
        ("metrics.jsonl", '{"step": 1, "rew', r"metrics\.jsonl has no steps yet"),
        ("metrics.jsonl", '{"step": 0}\nbroken\n{"step": 2}\n', r"metrics\.jsonl, line 2: broken record"),
        ("config.yaml", "a: [", r"config\.yaml cannot be read"),
        ("config.yaml", "- a", r"config\.yaml: expected a mapping of settings, got list"),
    ],
)
def test_unreadable_records_are_named(tmp_path, file, content, message):
    folder = write_run(tmp_path / "run", steps=1)
    (folder / file).write_text(content)
    with pytest.raises(HptError, match=message):
        report([folder])
    with pytest.raises(HptError, match=message):
        summary_figure([folder], tmp_path / "summary.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"step": 1, "id": "q", "P": "x"}\n', r"no records of rollouts \(could not convert string to float"),
        (b'{"step": 1, "id": "q", "responses": ["a"], "scores": [1' + b"0" * 400 + b"]}\n", "no records of rollouts"),
        (b'{"step": 1, "id": "q", "rewards": []}\n{"step": 1, "i', r"line 2: broken record"),
        (b"\xff\xfe\0", r"line 1: broken record"),
    ],
)
def test_rollouts_that_are_damaged_are_named(tmp_path, content, message):
    folder = write_run(tmp_path / "run", steps=1)
    path = folder / "rollouts" / "step-000001.jsonl"
    path.write_bytes(content)
    with pytest.raises(HptError, match=message) as error:
        report([folder])
    assert str(path) in str(error.value)


def test_no_run_at_all_is_an_error():
    with pytest.raises(HptError, match="no run given"):
        report([])


def test_the_time_of_a_run_has_what_is_outside_of_its_steps(tmp_path):
    run = write_run(tmp_path / "run", steps=2, eval_every=2)
    lines = [
        {"step": 0, "time/eval": 2.0, "time/start": 3.0},
        {"step": 1, "time/step": 5.0, "time/rollout": 4.0, "time/checkpoint": 7.0},
        {"step": 2, "time/step": 11.0, "time/eval": 13.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_runs([run])[0].seconds == 2 + 3 + 5 + 7 + 11 + 13
