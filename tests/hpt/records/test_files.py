"""hpt.records.files: what is written is read back; a kill or a full disk never breaks the records."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpt.records.files import RunRecords, read_jsonl, read_metrics, step_files, step_path
from hpt.support.errors import HptError


def test_floats_come_back_bit_for_bit(tmp_path):
    values = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, 1 / 3, -0.0]
    records = RunRecords(tmp_path)
    for step, value in enumerate(values):
        records.log({"step": step, "train/loss": value})
    assert [repr(record["train/loss"]) for record in read_metrics(tmp_path)] == [repr(value) for value in values]


def test_every_line_is_valid_json_whatever_the_values(tmp_path):
    records = RunRecords(tmp_path)
    records.log(
        {
            "step": 1,
            "train/loss": float("nan"),
            "list": [float("inf"), {"deep": float("-inf")}],
            "text": "é\u2028\ud800",
        }
    )

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    (line,) = (tmp_path / "metrics.jsonl").read_text("ascii").split("\n")[:-1]
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1,
        "train/loss": None,
        "list": [None, {"deep": None}],
        "text": "é\u2028\ud800",
    }


def test_rollouts_are_one_object_per_question(tmp_path):
    questions = [
        {"step": 7, "id": "a", "responses": ["1\n2", "\x00"]},
        {"step": 7, "id": "b", "responses": []},
    ]
    records = RunRecords(tmp_path)
    records.log_rollouts(7, questions)
    assert read_jsonl(tmp_path / "rollouts" / "step-000007.jsonl") == questions
    records.log_rollouts(7, questions[:1])
    assert read_jsonl(step_path(tmp_path, "rollouts", 7)) == questions[:1]
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == ["step-000007.jsonl"]


@pytest.mark.parametrize("broken", [b"", b'{"step": 9, "train/lo', b"\x00\x00\x00", b"7"])
def test_truncate_after_drops_later_steps_and_a_broken_last_line(tmp_path, broken):
    records = RunRecords(tmp_path)
    for step in range(4):
        records.log({"step": step, "train/loss": step / 3})
        records.log_rollouts(step, [{"step": step, "id": "q"}])
        records.log_changes(step, [{"what": "seed", "before": 0, "now": step}])
        records.log_evaluation(step, [{"id": "q", "n": 4, "correct": step}])
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(broken)
    assert [record["step"] for record in read_metrics(tmp_path)] == [0, 1, 2, 3]

    records.truncate_after(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    assert [line["step"] for line in read_jsonl(tmp_path / "changes.jsonl")] == [0, 1, 2]
    for kind in ("rollouts", "eval"):
        assert list(step_files(tmp_path, kind)) == [0, 1, 2]
    assert read_jsonl(step_path(tmp_path, "eval", 2)) == [{"step": 2, "id": "q", "n": 4, "correct": 2}]

    records.log({"step": 3, "train/loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    records.truncate_after(-1)
    assert read_metrics(tmp_path) == []
    assert step_files(tmp_path, "rollouts") == step_files(tmp_path, "eval") == {}


def test_a_folder_in_the_place_of_a_step_is_named(tmp_path):
    records = RunRecords(tmp_path)
    (tmp_path / "rollouts" / "step-000007.jsonl").mkdir(parents=True)
    with pytest.raises(HptError, match=r"cannot remove .*rollouts/step-000007\.jsonl: "):
        records.truncate_after(2)


def test_truncate_after_of_a_fresh_run_does_nothing(tmp_path):
    RunRecords(tmp_path / "run").truncate_after(0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 2, "tr', "broken record"),
        ("[2]", "not an object"),
        ('{"loss": 1}', "'step' must be an integer"),
        (f'{{"step": {2**63}}}', "'step' must be an integer of 64 bits"),
    ],
)
def test_a_broken_middle_line_names_file_and_line(tmp_path, line, message):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(HptError, match=message) as caught:
        read_metrics(tmp_path)
    assert f"{tmp_path / 'metrics.jsonl'}, line 2" in str(caught.value)


@pytest.mark.parametrize("line", ["[1]", '{"step": 2, "tr', "[" * 100_000])
def test_only_a_last_line_that_a_kill_cut_off_is_left_out(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}')
    assert read_metrics(tmp_path) == [{"step": 1}]
    with pytest.raises(HptError, match=r"metrics\.jsonl, line 2: broken record"):
        read_jsonl(path)
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(HptError, match=r"metrics\.jsonl, line 2: broken record"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("value", ["many", True, [1]])
def test_a_metric_that_is_no_number_is_named(tmp_path, value):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"step": 7, "train/grad_norm": value, "eval/count": None}) + "\n"
    )
    with pytest.raises(HptError, match="step 7: 'train/grad_norm' must be a number, got"):
        read_metrics(tmp_path)


def test_a_folder_without_metrics_is_not_a_run(tmp_path):
    with pytest.raises(HptError, match=r"not a run: it has no metrics\.jsonl"):
        read_metrics(tmp_path)


def test_a_full_disk_names_the_file_and_leaves_no_half_line(tmp_path, monkeypatch):
    records = RunRecords(tmp_path)
    records.log({"step": 1, "train/loss": 0.5})
    records.log_rollouts(1, [{"step": 1, "id": "kept"}])
    real_write = os.write

    def write_half_then_fail(descriptor, data):
        if len(data) <= 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, bytes(data)[: len(data) - 8])

    monkeypatch.setattr(os, "write", write_half_then_fail)
    with pytest.raises(HptError, match=r"metrics\.jsonl: No space left on device"):
        records.log({"step": 2, "train/loss": 0.25})
    with pytest.raises(HptError, match=r"step-000001\.jsonl: No space left on device"):
        records.log_rollouts(1, [{"step": 1, "id": "lost"}])
    with pytest.raises(HptError, match=r"metrics\.jsonl: No space left on device"):
        records.truncate_after(1)
    monkeypatch.undo()

    assert (tmp_path / "metrics.jsonl").read_text().endswith("0.5}\n")
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]
    assert [record["id"] for record in read_jsonl(step_path(tmp_path, "rollouts", 1))] == ["kept"]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_device_that_is_really_full(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(HptError, match=r"metrics\.jsonl: No space left"):
        RunRecords(tmp_path).log({"step": 1})


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HptError, match=r"file/run: Not a directory"):
        RunRecords(tmp_path / "file" / "run")


def test_a_line_is_on_the_disk_when_log_returns(tmp_path):
    """A process killed right after `log` loses nothing: no buffer of Python holds the line."""
    script = (
        "import os, signal, sys\n"
        "from hpt.records.files import RunRecords\n"
        "RunRecords(sys.argv[1]).log({'step': 1, 'train/loss': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 0.5}]
