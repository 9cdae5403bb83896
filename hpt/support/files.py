"""Writes files and folders that are complete or absent, whenever the process is killed or the disk fills up."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hpt.support.errors import HptError


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents where they are missing. HptError names the folder where that fails."""
    with named_os_errors(folder, "create"):
        _make_folder(folder)


def _make_folder(folder: Path) -> None:
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        flush_to_disk(each.parent)


def write_file_atomically(path: Path, data: bytes) -> None:
    """Writes a file that has its old or its new content, never a part of it, and is on the disk on return.

    HptError, naming the file, where it cannot be written; the old content is then untouched.
    """
    partial = _partial_file(path)
    with named_os_errors(path):
        try:
            with partial.open("wb", buffering=0) as file:
                _write_all(file.fileno(), data)
            partial.replace(path)
            flush_to_disk(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def remove_partial_file(path: Path) -> None:
    """Removes what is left where a process was killed in `write_file_atomically`. No other process may write `path`."""
    with named_os_errors(path):
        _partial_file(path).unlink(missing_ok=True)


def _partial_file(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def append_to_file(path: Path, data: bytes) -> None:
    """Appends `data`, which is on the disk on return.

    HptError, naming the file, where it cannot be written; the file then has its old content.
    """
    with named_os_errors(path), path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            _write_all(file.fileno(), data)
            if end == 0:
                flush_to_disk(path.parent)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), end)
            raise


@contextlib.contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yields an empty hidden folder beside `path`. After the block it is flushed to disk and renamed to `path`.

    An old folder of that name is replaced. Where the block raises, or the process is killed in it, it stays as it was.
    """
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    _make_folder(path.parent)
    partial.mkdir()
    try:
        yield partial
        for written in [*partial.rglob("*"), partial]:
            flush_to_disk(written)
        old = _set_aside(path) if path.exists() else None
        partial.rename(path)
        flush_to_disk(path.parent)
        if old:
            _remove(old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_folder_atomically(path: Path) -> None:
    """Removes a folder, renaming it first: a removal that is interrupted leaves no incomplete folder at `path`."""
    _remove(_set_aside(path))


def _set_aside(path: Path) -> Path:
    """Renames a folder, or a file in its place, that is to be removed."""
    removed = path.with_name(f".removed-{path.name}")
    if removed.exists():
        _remove(removed)
    return path.rename(removed)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_leftovers(parent: Path) -> None:
    """Removes what killed processes left in `parent` of folders that they were writing or removing."""
    for leftover in [*parent.glob(".partial-*"), *parent.glob(".removed-*")]:
        _remove(leftover)


def flush_to_disk(path: Path) -> None:
    """Flushes a file or a folder to disk. A rename is durable only once the folder that holds it is flushed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def named_os_errors(path: Path, verb: str = "write") -> Iterator[None]:
    """Turns an OSError into an HptError that says what could not be done to which path."""
    try:
        yield
    except OSError as error:
        raise HptError(f"cannot {verb} {path}: {error.strerror or error}") from error


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
