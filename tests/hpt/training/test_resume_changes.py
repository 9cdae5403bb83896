"""What changed between stop and resume: refused by name, or accepted and recorded; broken checkpoints are not used."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_world import make_world

import hpt
from hpt.commands.main import main
from hpt.records.changes import Change, in_words, read_changes
from hpt.records.checkpoints import checkpoints
from hpt.records.checksums import CHECKSUMS, read_checksums
from hpt.records.files import read_metrics
from hpt.records.fingerprints import (
    FINGERPRINTS,
    Fingerprints,
    changes_between,
    changes_since,
    metrics_fingerprint,
)
from hpt.support.errors import HptError
from hpt.training.checkpoint import check_checkpoint, check_files


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of SFT with checkpoints after steps 1 and 2, in the folder of its model and data."""
    folder = tmp_path_factory.mktemp("stopped")
    recipe = make_world(folder)
    settings = ["method=sft", "steps=2", "eval.every=0", "checkpoint.every=1", "threads=null"]
    assert main(["train", str(recipe), f"output={folder / 'run'}", *settings]) == 0
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    """The run in another folder, with data and model where they were."""
    return Path(shutil.copytree(stopped / "run", tmp_path / "run"))


def sums_of(checkpoint: Path) -> str:
    """What `sha256sum` prints."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != CHECKSUMS]
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(checkpoint)}\n" for path in files
    )


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, path
    path.write_text(text.replace(before, after))


def test_all_that_changed_is_named_and_the_run_is_left_as_it_was(
    tmp_path: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = tmp_path / "world"
    shutil.copytree(stopped, world)
    run = world / "run"
    for path in (run / "config.yaml", run / "checkpoints" / "step-000002" / FINGERPRINTS):
        path.write_text(path.read_text().replace(str(stopped), str(world)))  # as if it had been trained here
    (run / "checkpoints" / "step-000002" / CHECKSUMS).write_text(sums_of(run / "checkpoints" / "step-000002"))
    edit(run / "config.yaml", "\nseed: 0\n", "\nseed: 1\n")
    edit(run / "config.yaml", "  lr: 0.001\n", "  lr: 0.5\n")
    edit(run / "config.yaml", "  weight_decay: 0.01\n", "")
    edit(world / "train.jsonl", '"7+0="', '"6+1="')
    edit(world / "eval.jsonl", '"0+5="', '"5+0="')
    edit(world / "model" / "config.json", '"use_cache": true', '"use_cache": false')
    (run / "metrics.jsonl").unlink()
    torch.set_num_threads(2)
    before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}
    try:
        assert main(["train", "--resume", str(run), "steps=3", "optimizer.weight_decay=0.1"]) == 2
    finally:
        torch.set_num_threads(1)
    assert {path: path.read_bytes() for path in world.rglob("*") if path.is_file()} == before
    error = " ".join(capsys.readouterr().err.split())
    said = [
        f"{run}: changed since step-000002 was written: ",
        "seed (was 0, is 1)",
        "optimizer.lr (was 0.001, is 0.5)",
        f"the content of {world / 'train.jsonl'} (was ",
        f"the content of {world / 'eval.jsonl'} (was ",
        f"the files of {world / 'model'} (was ",
        "the number of CPU threads (was 1, is 2)",
        "metrics.jsonl until then (was 2 lines, ",
        "is 0 lines, ",
        "--accept-changes",
    ]
    assert all(part in error for part in said), error
    assert error.count("(was ") == 7
    assert "steps (was" not in error  # asked for
    assert "optimizer.weight_decay (was" not in error


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: lines[1:], lambda lines: [lines[0]] * 2])
def test_lines_of_metrics_that_are_gone_or_others_are_noticed(copy: Path, change: Any) -> None:
    path = copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[-1].replace(b'"step": 2', b'"step": 3')]))
    whole = metrics_fingerprint(copy, 2)
    saved = Fingerprints.read(checkpoints(copy)[-1])
    assert saved is not None
    assert whole == saved.content["metrics.jsonl until then"]
    path.write_bytes(b"".join(change(lines)))
    assert metrics_fingerprint(copy, 2) != whole


def test_accepted_changes_are_recorded_and_not_asked_about_again(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not after a kill before the next checkpoint, and not where they are taken back."""
    edit(copy / "config.yaml", "  lr: 0.001\n", "  lr: 0.5\n")
    hpt.train(resume=copy, steps=3, accept_changes=True)
    changes = (copy / "changes.jsonl").read_text()
    assert changes == (
        '{"step": 2, "changes": [{"what": "steps", "before": 2, "now": 3}, '
        '{"what": "optimizer.lr", "before": 0.001, "now": 0.5}]}\n'
    )
    saved = Fingerprints.read(checkpoints(copy)[-1])
    assert saved is not None
    assert (saved.settings["optimizer"]["lr"], saved.settings["steps"]) == (0.5, 3)
    shutil.rmtree(checkpoints(copy)[-1])
    hpt.train(resume=copy)
    assert (copy / "changes.jsonl").read_text() == changes
    assert read_metrics(copy)[-1]["train/lr"] == 0.5
    edit(copy / "config.yaml", "  lr: 0.5\n", "  lr: 0.001\n")
    older = Fingerprints.read(checkpoints(copy)[-2])
    assert older is not None
    now = Fingerprints(yaml.safe_load((copy / "config.yaml").read_text()), older.content)
    changes_back, unasked = changes_since(older, copy, 2, now)
    assert (in_words(changes_back), unasked) == ("optimizer.lr (was 0.5, is 0.001)", [])


def test_a_run_may_move_and_save_at_other_steps(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (copy / "config.yaml").read_text().replace("  keep: 2\n", "  keep: 3\n")
    (copy / "config.yaml").write_text(text.replace("  every: 0\n  n: 2\n", "  every: 7\n  n: 2\n"))
    shutil.move(copy, copy.with_name("moved"))
    assert main(["train", "--resume", str(copy.with_name("moved")), "steps=3", "checkpoint.every=0"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "eval.every (was 0, is 7)" in error
    assert error.count("(was ") == 1


def test_every_file_of_a_checkpoint_is_checked(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older, newest = checkpoints(copy)
    assert (newest / CHECKSUMS).read_text() == sums_of(newest)
    sums = read_checksums(newest)
    files = {path for path in newest.rglob("*") if path.is_file()}
    assert {newest / name for name in sums} == files - {newest / CHECKSUMS}
    assert {"model.safetensors", "trainer_state.pt", "config.json", FINGERPRINTS} <= sums.keys()

    def refused() -> str:
        with pytest.raises(HptError) as error:
            check_checkpoint(newest)
        return str(error.value)

    for path in sorted(files):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        path.write_bytes(flipped)
        error = refused()
        if path.name != CHECKSUMS:  # a file of another name or with other digits, or a broken line
            assert f"{path} is not what was written" in error
        assert f"Remove {newest} and resume: the run goes on from step-000001" in error
        path.unlink()
        assert f"{path} is missing. Remove " in refused()
        path.write_bytes(content)
    assert check_files(newest)
    check_checkpoint(newest)
    whole = (newest / CHECKSUMS).read_text()
    (newest / CHECKSUMS).write_text("")
    assert f"{newest / 'config.json'} is not in checksums.txt" in refused()
    (newest / CHECKSUMS).write_text(whole.replace("  model.safetensors", " model.safetensors"))
    assert "must be 64 hexadecimal digits, two blanks and the name of a file. Remove " in refused()
    (newest / CHECKSUMS).write_text(whole)
    (newest / "model.safetensors").write_bytes(b"")
    assert main(["train", "--resume", str(copy), "steps=3", "--accept-changes"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{newest / 'model.safetensors'} is not what was written" in error
    shutil.rmtree(older)
    assert "resume with --accept-changes: there is no older one, so the run starts again from step 0" in refused()


def test_a_setting_that_config_yaml_spells_in_another_way_was_not_asked_for(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copy / "config.yaml", "  lr: 0.001\n", "  lr: 2e-3\n")  # a text in YAML
    assert main(["train", "--resume", str(copy), "steps=3"]) == 2
    assert "changed since step-000002 was written: optimizer.lr (was 0.001, is 0.002)" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_run_whose_checkpoints_are_gone_starts_again_only_where_that_is_accepted(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copy / "checkpoints")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(copy)]) == 2
    assert "the run was saved after step 2, and there is no checkpoint now" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert main(["train", "--resume", str(copy), "--accept-changes"]) == 0
    assert "has no checkpoint: the run starts again from step 0" in " ".join(capsys.readouterr().err.split())
    assert [line["step"] for line in read_metrics(copy)] == [1, 2]
    lost = Change("the checkpoints", "up to step 2", "none, started again")
    assert read_changes(copy) == [(0, [lost])]


def test_a_checkpoint_of_another_name_is_not_taken_for_that_step(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(copy)[-1]
    newest.rename(newest.with_name("step-000003"))
    assert main(["train", "--resume", str(copy), "steps=4"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "changed since step-000003 was written: the step of the checkpoint (was 2, is 3)" in said
    for name in ("step-00000\u0663", "step-0000000", "step-00003", "step-" + "9" * 19):
        (copy / "checkpoints" / "step-000003").rename(copy / "checkpoints" / name)
        assert [path.name for path in checkpoints(copy)] == ["step-000001"]
        (copy / "checkpoints" / name).rename(copy / "checkpoints" / "step-000003")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    copy: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    shutil.rmtree(copy / "checkpoints")
    text = (copy / "metrics.jsonl").read_text()
    evaluated = '{"step": 0}\n'
    (copy / "metrics.jsonl").write_text(evaluated + re.sub(r', "time/checkpoint": [^,}]*', "", text))
    assert main(["train", "--resume", str(copy)]) == 0
    assert len(checkpoints(copy)) == 2
    assert [line["step"] for line in metrics_of(copy)] == [1, 2]


def test_what_a_kill_left_of_metrics_is_cleared_away(copy: Path) -> None:
    """Also where the run was killed after its last checkpoint, and a resume has nothing to do."""
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for name in ("config.yaml", "metrics.jsonl", "changes.jsonl"):
        (copy / f"{name}.partial").write_text('{"step": 0')
    report = copy / "report.html.partial"
    before[report] = b"being written"
    report.write_bytes(before[report])
    assert main(["train", "--resume", str(copy)]) == 0
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_what_is_no_checkpoint_in_the_folder_of_checkpoints(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "checkpoints" / "step-000008").write_text("a file")
    assert [path.name for path in checkpoints(copy)] == ["step-000001", "step-000002"]
    empty = copy / "checkpoints" / "step-000009"
    empty.mkdir()
    assert main(["train", "--resume", str(copy), "steps=9"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{empty} is empty. Remove {empty} and resume: the run goes on from step-000002" in error


@pytest.mark.parametrize("line", ['{"step": 2}', '{"step": 2, "changes": [{"x": 1}]}'])
def test_broken_records_of_changes_are_named(copy: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "changes.jsonl").write_text(line + "\n")
    assert main(["train", "--resume", str(copy), "steps=3"]) == 2
    assert f"{copy / 'changes.jsonl'}: a record must have a list `changes`" in " ".join(capsys.readouterr().err.split())


def test_a_run_of_an_earlier_version_resumes_with_a_warning(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in checkpoints(copy):
        (checkpoint / CHECKSUMS).unlink()
        (checkpoint / FINGERPRINTS).unlink()
    hpt.train(resume=copy, steps=3)
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("is of an earlier version of hpt, without checksums and fingerprints") == 1
    assert (checkpoints(copy)[-1] / FINGERPRINTS).is_file()
    assert not (copy / "changes.jsonl").exists()


def test_changes_are_accepted_only_where_a_run_is_resumed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(world), "--accept-changes"]) == 2
    assert "accept_changes: a new run has no changes to accept" in " ".join(capsys.readouterr().err.split())


def test_a_new_setting_is_no_change_of_an_older_run(copy: Path) -> None:
    path = checkpoints(copy)[-1] / FINGERPRINTS
    saved = json.loads(path.read_bytes())
    del saved["settings"]["optimizer"]["skip_grad_norm"], saved["settings"]["batch"]["rows_per_update"]
    now = Fingerprints(yaml.safe_load((copy / "config.yaml").read_text()), saved["content"])
    assert changes_between(Fingerprints(**saved).flat(), now.flat()) == []
