"""Fingerprints of what a run's numbers depend on: what is in them, and what counts as a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_world import make_world

from hpt.config.recipe import load_config
from hpt.records import fingerprints
from hpt.records.changes import Change
from hpt.records.fingerprints import (
    Fingerprints,
    changes_between,
    changes_since,
    fingerprints_of,
    model_fingerprint,
)


def test_what_the_machine_chooses_counts_and_what_a_setting_says_does_not(tmp_path: Path) -> None:
    recipe = make_world(tmp_path)
    model = f"the files of {tmp_path / 'model'}"

    def content(*settings: str) -> dict[str, str]:
        return fingerprints_of(load_config(recipe, settings), {"train.jsonl": "0123456789abcdef01"}).content

    files = model_fingerprint(str(tmp_path / "model"))
    given = content("device=cpu", "threads=1")
    assert given == {"the content of train.jsonl": "0123456789abcdef", model: files}
    threads = {"the number of CPU threads": str(torch.get_num_threads())}
    assert content("device=cpu", "threads=null") == given | threads
    if not torch.cuda.is_available():
        assert content("device=auto", "threads=null") == given | threads | {"the device": "cpu"}


def test_a_setting_that_is_new_or_gone_has_changed_and_other_data_have_not() -> None:
    before = {"steps": 3, "gone": 1, "the content of a": "x", "the content of b": "y"}
    now = {"steps": 3, "new": 2, "the content of a": "z", "the content of c": "y"}
    assert changes_between(before, now) == [
        Change("gone", 1, None),
        Change("the content of a", "x", "z"),
        Change("new", None, 2),
    ]


def test_settings_that_cannot_be_read_any_more_are_compared_as_they_are() -> None:
    settings = {"output": "runs/a", "steps": 3, "batch": {"of an earlier version": 1}, "track": {}}
    assert Fingerprints(settings, {"the device": "cpu"}).flat() == {
        "steps": 3,
        "batch.of an earlier version": 1,
        "the device": "cpu",
    }


def test_changes_accepted_before_an_earlier_step_are_in_the_checkpoint_already(tmp_path: Path) -> None:
    config = load_config(make_world(tmp_path), [f"output={tmp_path}", "optimizer.lr=0.001"])
    (tmp_path / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    now = fingerprints_of(config, {})
    accepted = [{"step": step, "changes": [{"what": "optimizer.lr", "before": 0.001, "now": 0.5}]} for step in (1, 2)]
    (tmp_path / "changes.jsonl").write_text(json.dumps(accepted[0]) + "\n")
    assert changes_since(now, tmp_path, 2, now) == ([], [])
    (tmp_path / "changes.jsonl").write_text(json.dumps(accepted[1]) + "\n")
    assert changes_since(now, tmp_path, 2, now) == ([Change("optimizer.lr", 0.5, 0.001)], [])  # taken back


def test_the_base_of_adapters_counts_as_the_model(tmp_path: Path) -> None:
    for name, files in (("base", {"w": "1"}), ("adapters", {"adapter_config.json": "{}", "adapter_model.bin": "2"})):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    settings = json.dumps({"base_model_name_or_path": str(tmp_path / "base"), "r": 4})
    (tmp_path / "adapters" / "adapter_config.json").write_text(settings)
    before = model_fingerprint(str(tmp_path / "adapters"))
    (tmp_path / "base" / "w").write_text("3")
    assert model_fingerprint(str(tmp_path / "adapters")) != before


def test_a_large_file_of_weights_is_told_apart_by_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "PIECE", 16)
    weights = tmp_path / "model.safetensors"
    size = 20 * 16 * fingerprints.PIECES
    seen = []
    for place in (0, 1, 20 * 16 + 8, size - 1, None):  # of a byte that differs
        content = bytearray(size)
        if place is not None:
            content[place] = 1
        weights.write_bytes(content)
        seen.append(model_fingerprint(str(tmp_path)))
    assert len(set(seen)) == 5
    (tmp_path / "README.md").touch()
    (tmp_path / ".cache").touch()
    assert model_fingerprint(str(tmp_path)) == seen[-1]
    weights.rename(tmp_path / "other.safetensors")
    assert model_fingerprint(str(tmp_path)) not in seen
