"""hpt.support.files: files and folders are complete or absent, flushed before a rename; errors name the path."""

import errno
import os

import pytest

from hpt.support import files
from hpt.support.errors import HptError


def write_folder(path, content="new"):
    with files.folder_atomically(path) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text(content)


def test_a_folder_appears_after_the_block(tmp_path):
    path = tmp_path / "parent" / "folder"
    with files.folder_atomically(path) as partial:
        assert partial.parent == path.parent
        assert partial.name.startswith(".")
        assert not path.exists()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    write_folder(tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["deep"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_in_the_place_of_a_folder_is_replaced_and_removed(tmp_path):
    for name in ("folder", ".partial-other", ".removed-folder", ".removed-other"):
        (tmp_path / name).write_text("a file")
    write_folder(tmp_path / "folder")
    assert (tmp_path / "folder" / "deep" / "file").read_text() == "new"
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    (tmp_path / "other").write_text("a file")
    files.remove_folder_atomically(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_new_folder_is_there_before_the_old_one_is_removed(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", "old")
    seen = []
    rmtree = files.shutil.rmtree

    def watch(path, ignore_errors=False):
        if path.exists():
            seen.append((path.name, (tmp_path / "folder" / "deep" / "file").read_text()))
        rmtree(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(files.shutil, "rmtree", watch)
    write_folder(tmp_path / "folder")
    assert seen == [(".removed-folder", "new")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_block_that_raises_leaves_the_old_folder(tmp_path, error):
    write_folder(tmp_path / "folder", "old")

    def fail():
        with files.folder_atomically(tmp_path / "folder") as partial:
            (partial / "half").touch()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "deep" / "file").read_text() == "old"


def test_what_a_killed_process_left_does_not_get_into_the_folder(tmp_path):
    for leftover in (".partial-folder", ".removed-folder"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half").touch()
    write_folder(tmp_path / "folder", "old")
    write_folder(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["deep"]


def test_everything_is_flushed_before_the_rename_and_the_parent_after_it(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    flushed = []
    monkeypatch.setattr(files, "flush_to_disk", lambda each: flushed.append((each.name, path.exists())))
    write_folder(path)
    *before, after = flushed
    assert sorted(before) == [(".partial-folder", False), ("deep", False), ("file", False)]
    assert after == (tmp_path.name, True)


def test_an_interrupted_removal_leaves_no_folder_under_its_name(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder")

    def interrupt(path, ignore_errors=False):
        if not ignore_errors:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.remove_folder_atomically(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    files.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, files.Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(files.Path, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    files.write_file_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "rename", "fsync"]
    assert (tmp_path / "file").read_bytes() == b"new"
    calls.clear()
    files.append_to_file(tmp_path / "file", b"er")
    assert calls == ["fsync"]
    files.append_to_file(tmp_path / "another", b"new")
    assert calls == ["fsync"] * 3  # of a new file its folder, too
    calls.clear()
    files.make_folder(tmp_path / "deep" / "deeper")
    assert calls == ["fsync"] * 2
    files.make_folder(tmp_path / "deep" / "deeper")
    assert calls == ["fsync"] * 2


def test_errors_name_the_path(tmp_path):
    with pytest.raises(HptError, match=r"cannot write .*nowhere/file: No such file"):
        files.write_file_atomically(tmp_path / "nowhere" / "file", b"")
    with pytest.raises(HptError, match=r"cannot write .*nowhere/file: No such file"):
        files.append_to_file(tmp_path / "nowhere" / "file", b"")
    (tmp_path / "file").touch()
    with pytest.raises(HptError, match=r"cannot create .*file/folder: Not a directory"):
        files.make_folder(tmp_path / "file" / "folder")
