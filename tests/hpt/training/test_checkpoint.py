"""Checkpoints: whole or absent, pruned, plain for transformers, and clear when the disk refuses."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from thread_ranks import on_ranks
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hpt.records.checkpoints import checkpoints, step_of
from hpt.support.distributed import World
from hpt.support.errors import HptError
from hpt.training import checkpoint
from hpt.training.checkpoint import check_checkpoint, load_state, save_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def parts(world: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = world.parent / "model"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_the_newest_are_kept_and_transformers_loads_them(tmp_path: Path, parts: Any) -> None:
    model, tokenizer = parts
    state = {"engine": {"x": torch.arange(3.0), "n": 4}}
    for step in (1, 2, 1_000_000, 999_999):  # by name the last one would be the newest
        save_checkpoint(tmp_path, step, model, tokenizer, state, keep=2)
    found = checkpoints(tmp_path)
    assert [step_of(path) for path in found] == [999_999, 1_000_000]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-999999", "step-1000000"}
    loaded = AutoModelForCausalLM.from_pretrained(found[-1])
    for one, other in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)
    assert AutoTokenizer.from_pretrained(found[-1])("1+2=")["input_ids"] == tokenizer("1+2=")["input_ids"]
    restored = load_state(found[-1])
    assert torch.equal(restored["engine"]["x"], state["engine"]["x"])


def test_weights_that_the_modules_do_not_hold_are_saved(tmp_path: Path, parts: Any) -> None:
    model, tokenizer = parts
    weights = {name: torch.full_like(tensor, 2.0) for name, tensor in model.state_dict().items()}
    path = save_checkpoint(tmp_path, 1, model, tokenizer, {}, keep=1, weights=weights)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert all(bool((parameter == 2).all()) for parameter in loaded.parameters())


def test_a_checkpoint_appears_with_its_checksums(tmp_path: Path, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, checksums: dict[str, str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_checksums", full)
    with pytest.raises(HptError, match="No space left on device"):
        save_checkpoint(tmp_path, 1, *parts, {}, keep=1)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_a_kill_leaves_is_no_checkpoint_and_is_cleared_away(tmp_path: Path, parts: Any) -> None:
    folder = tmp_path / "checkpoints"
    (folder / ".partial-step-000004").mkdir(parents=True)
    (folder / ".partial-step-000004" / "model.safetensors").write_bytes(b"half")
    (folder / ".removed-step-000001").mkdir()
    assert checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, 6, *parts, {}, keep=1)
    assert [path.name for path in folder.iterdir()] == ["step-000006"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("stream write failed")]
)
def test_a_disk_that_fills_leaves_the_earlier_checkpoint(tmp_path: Path, error: Exception) -> None:
    def first(folder: Path) -> None:
        (folder / "weights").write_text("good")

    def fails(folder: Path) -> None:
        (folder / "weights").write_text("ha")
        raise error

    write_checkpoint(tmp_path / "checkpoints" / "step-000001", first)
    with pytest.raises(HptError, match=r"step-000002 could not be written: .*MiB free.*--resume"):
        write_checkpoint(tmp_path / "checkpoints" / "step-000002", fails)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
    assert (tmp_path / "checkpoints" / "step-000001" / "weights").read_text() == "good"


@pytest.mark.parametrize(
    ("error", "free", "said"),
    [
        (RuntimeError("unexpected pos 8"), 2**20 - 1, "No space left on device (unexpected pos 8) (1 MiB free"),
        (OSError(errno.ENOSPC, "No space left on device"), 0, "[Errno 28] No space left on device (0 MiB free"),
        (RuntimeError("unexpected pos 8"), 2**20, "written: unexpected pos 8 (1 MiB free"),
    ],
)
def test_a_full_disk_is_called_one(
    error: Exception, free: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.save names a full disk by the place in its file."""

    def fails(folder: Path) -> None:
        raise error

    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(HptError, match=re.escape(said)):
        write_checkpoint(tmp_path / "checkpoints" / "step-000002", fails)


def test_what_a_new_checkpoint_replaces_makes_room_first(tmp_path: Path, parts: Any, monkeypatch: Any) -> None:
    """At no moment are there more than `keep`, the one being written included, nor none that is whole."""
    seen: list[list[int]] = []

    def watch(state: object, path: Path) -> None:
        seen.append([step_of(each) for each in checkpoints(tmp_path)])

    monkeypatch.setattr(torch, "save", watch)
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, *parts, {}, keep=3)
    for step in (5, 6):
        save_checkpoint(tmp_path, step, *parts, {}, keep=1)
    assert seen == [[], [1], [1, 2], [2, 3], [4], [5]]
    assert [step_of(path) for path in checkpoints(tmp_path)] == [6]


def test_a_full_disk_says_which_checkpoints_can_go(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in (1, 2, 3):
        write_checkpoint(tmp_path / "checkpoints" / f"step-00000{step}", lambda folder: None)
    with pytest.raises(HptError, match=r"step-000001, [^ ]*step-000002 can go \(and see checkpoint\.keep\)"):
        write_checkpoint(tmp_path / "checkpoints" / "step-000004", full)


def refused(checkpoint: Path) -> Callable[[World], str]:
    def message(world: World) -> str:
        with pytest.raises(HptError) as error:
            check_checkpoint(checkpoint, world)
        return str(error.value)

    return message


def test_ranks_write_one_checkpoint_and_each_reads_its_own_part(tmp_path: Path, parts: Any) -> None:
    def save(world: World) -> dict[str, Any]:
        path = save_checkpoint(tmp_path, 1, *parts, {"rank": world.rank}, keep=1, world=world)
        check_checkpoint(path, world)
        return load_state(path, world)

    assert on_ranks(2, save) == [{"rank": 0}, {"rank": 1}]
    (path,) = checkpoints(tmp_path)
    assert {file.name for file in path.glob("*.pt")} == {"trainer_state.pt", "trainer_state-1.pt"}
    with pytest.raises(
        HptError, match=f"^{path} was written by 2 processes, and this run has 1: .*on 2, .* model.path={path}$"
    ):
        check_checkpoint(path)
    alone = save_checkpoint(tmp_path / "alone", 1, *parts, {}, keep=1)
    assert all("was written by 1 processes, and this run has 2" in message for message in on_ranks(2, refused(alone)))
    (path / "trainer_state-1.pt").write_bytes(b"damaged")
    for message in on_ranks(2, refused(path)):
        assert message.startswith(f"{path / 'trainer_state-1.pt'} is not what was written: its checksum is another")


def test_no_checkpoint_is_left_where_one_rank_fails(tmp_path: Path) -> None:
    def write(world: World) -> str:
        def part(folder: Path) -> None:
            (folder / f"part-{world.rank}").write_text("whole")
            if world.rank == 1:
                raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.raises(HptError, match=r"step-000001 could not be written: .*No space left on device") as error:
            write_checkpoint(tmp_path / "checkpoints" / "step-000001", part, world)
        return str(error.value)

    first, _ = on_ranks(2, write)
    assert "rank 1 failed" in first
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-000001"
    folder.mkdir(parents=True)
    torch.save({"engine": pytest.MonkeyPatch()}, folder / "trainer_state.pt")
    with pytest.raises(HptError, match=r"trainer_state\.pt is broken \(UnpicklingError\)"):
        load_state(folder)


@pytest.mark.parametrize("content", [b"not a state", b""])
def test_a_broken_state_is_named_with_the_checkpoint_to_go_on_from(tmp_path: Path, content: bytes) -> None:
    folders = [tmp_path / "checkpoints" / f"step-{step}" for step in (999_999, 1_000_000)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "trainer_state.pt").write_bytes(content)
    with pytest.raises(
        HptError, match=r"step-1000000/trainer_state\.pt is broken .*goes on from step-999999$"
    ) as error:
        load_state(folders[1])
    assert len(str(error.value)) < 300 + 2 * len(str(tmp_path))
    with pytest.raises(HptError, match=r"step-999999/trainer_state\.pt is broken .*from step 0$"):
        load_state(folders[0])
