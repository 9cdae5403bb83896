"""Checksums of the files in a folder, in a file that `sha256sum --check` reads.

SHA-256: the CPUs of servers have instructions for it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from hpt.support.errors import HptError
from hpt.support.files import named_os_errors

CHECKSUMS = "checksums.txt"
_LINE = re.compile(r"(?P<digits>[0-9a-f]{64})  (?P<name>.+)")


def checksum(path: Path) -> str:
    """Of a file's content, as hexadecimal digits. HptError where it cannot be read."""
    with named_os_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> list[str]:
    """The names of all files in a folder, its own folders included, in the order of names."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_checksums(folder: Path, checksums: Mapping[str, str]) -> None:
    """checksums: by the name of the file in the folder."""
    lines = (f"{digits}  {name}\n" for name, digits in checksums.items())
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def read_checksums(folder: Path) -> dict[str, str]:
    """By the name of the file. HptError where they cannot be read, or a line is none of `sha256sum`'s."""
    path = folder / CHECKSUMS
    with named_os_errors(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    checksums = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise HptError(f"{path}, line {number}: must be 64 hexadecimal digits, two blanks and the name of a file")
        checksums[match["name"]] = match["digits"]
    return checksums
