"""A run's records: `metrics.jsonl`, one object a step; `rollouts/step-*.jsonl` and `eval/step-*.jsonl`, one a question.

Every record is valid JSON in ASCII and survives a kill: a metrics line is on the disk when `log` returns, a step's
file appears whole or not at all. `truncate_after` brings the records back to a checkpoint's step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpt.support.errors import HptError

METRICS = "metrics.jsonl"
ROLLOUTS = "rollouts"
EVALUATIONS = "eval"
_STEP_NAME = re.compile(r"step-(\d+)\.jsonl")


class RunRecords:
    """Writer of one run's records.

    folder: the run's folder, created where missing. A folder that holds records
    already is continued: call `truncate_after` first, since a killed run may have left a broken last line.

    Every method raises HptError, naming the file, where the disk is full or the file can't be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.metrics_path = self.folder / METRICS
        make_folder(self.folder)

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one step's metrics. Floats keep every digit; NaN and infinities, not JSON, become null."""
        line = _json_line(metrics)
        with _named_errors(self.metrics_path), self.metrics_path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                _write_all(file.fileno(), line)
            except OSError:
                with contextlib.suppress(OSError):  # shortening needs no space: no half line stays behind
                    os.ftruncate(file.fileno(), start)
                raise

    def log_rollouts(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Write one step's rollouts, one object a question; a file of the same step is replaced."""
        self._log_step(ROLLOUTS, step, records)

    def log_evaluation(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Write the evaluation after one step, one object a question; a file of the same step is replaced."""
        self._log_step(EVALUATIONS, step, [{"step": step, **record} for record in records])

    def truncate_after(self, step: int) -> None:
        """Drop every record past `step`, so that a run resumed there writes each step once."""
        if self.metrics_path.exists():
            kept = [record for record in read_jsonl(self.metrics_path) if record["step"] <= step]
            write_atomically(self.metrics_path, b"".join(map(_json_line, kept)))
        for kind in (ROLLOUTS, EVALUATIONS):
            with _named_errors(self.folder / kind):
                for found, path in step_files(self.folder, kind).items():
                    if found > step:
                        path.unlink()

    def _log_step(self, kind: str, step: int, records: Sequence[dict[str, Any]]) -> None:
        path = step_path(self.folder, kind, step)
        make_folder(path.parent)
        write_atomically(path, b"".join(map(_json_line, records)))


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The objects of a run's metrics.jsonl, in order.

    A broken last line is what a kill leaves and is left out; a broken line before it, or one without an
    integer `step`, is an HptError that names file and line. So is a folder without metrics.
    """
    path = Path(folder) / METRICS
    if not path.is_file():
        raise HptError(f"{folder} is not a run: it has no {METRICS}")
    return read_jsonl(path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of one record file; see `read_metrics` for what is an error."""
    with _named_errors(path, "read"):
        lines = [(number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    records = []
    for number, line in lines:
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            if number == lines[-1][0]:
                break
            raise HptError(f"{path}, line {number}: broken record ({error})") from error
        if type(record.get("step")) is not int:
            raise HptError(f"{path}, line {number}: field 'step' must be an integer, got {record.get('step')!r}")
        records.append(record)
    return records


def step_path(folder: str | Path, kind: str, step: int) -> Path:
    """Where a run keeps the records of one step; kind: ROLLOUTS or EVALUATIONS."""
    return Path(folder) / kind / f"step-{step:06d}.jsonl"


def step_files(folder: str | Path, kind: str) -> dict[int, Path]:
    """A run's files of one kind by step, in the order of steps."""
    found = {}
    for path in (Path(folder) / kind).glob("step-*.jsonl"):
        if match := _STEP_NAME.fullmatch(path.name):
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def make_folder(folder: Path) -> None:
    """Create a folder and its parents where missing; HptError names it where that fails."""
    with _named_errors(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is old or new, never half, and on the disk when this returns.

    HptError, naming the file, where it can't be written; what stood there before is then untouched.
    """
    partial = path.with_name(path.name + ".partial")
    with _named_errors(path):
        try:
            with partial.open("wb", buffering=0) as file:
                _write_all(file.fileno(), data)
            partial.replace(path)
            flush(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def _json_line(record: dict[str, Any]) -> bytes:
    return json.dumps(_finite(record), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.fsync(descriptor)


def flush(path: Path) -> None:
    """Puts a file or a folder on the disk; a rename is durable only once its folder is there too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _named_errors(path: Path, verb: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HptError(f"cannot {verb} {path}: {error.strerror or error}") from error
