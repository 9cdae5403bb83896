"""The files of a run: `metrics.jsonl` has one object per step, `rollouts/` and `eval/` one file per step.

`changes.jsonl` has an object for each time that the run was resumed with something changed.

A file of a step, `step-NNNNNN.jsonl`, has one object per question. Every record is valid JSON in ASCII and survives a
kill: a line of metrics is on the disk when `log` returns, and the file of a step is complete or absent.
`truncate_after` drops what a killed run wrote after the checkpoint that it is resumed from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpt.support.errors import HptError
from hpt.support.files import append_to_file, make_folder, named_os_errors, write_file_atomically

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHANGES = "changes.jsonl"
ROLLOUTS = "rollouts"
EVALUATIONS = "eval"
_STEP_NAME = re.compile(r"step-(\d+)\.jsonl")


class RunRecords:
    """Writes the records of one run.

    folder: the run's folder, created where missing. If it already holds records, call `truncate_after` before
    anything else, since a killed run may have left a broken last line.

    Every method raises HptError, naming the file, where the disk is full or the file cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.metrics_path = self.folder / METRICS
        make_folder(self.folder)

    def log(self, metrics: dict[str, Any]) -> None:
        """Appends the metrics of one step. Floats keep every digit; NaN and infinities, not JSON, become null."""
        append_to_file(self.metrics_path, _json_line(metrics))

    def amend(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds `metrics` to the last line, that of `step`."""
        *earlier, last = read_jsonl(self.metrics_path, appended=True)
        assert last["step"] == step, f"the last line is of step {last['step']}, not {step}"
        write_file_atomically(self.metrics_path, _json_lines([*earlier, last | metrics]))

    def log_changes(self, step: int, changes: Sequence[dict[str, Any]]) -> None:
        """Appends what was another than before when the run was resumed after `step` (fields of a `Change`)."""
        append_to_file(self.folder / CHANGES, _json_line({"step": step, "changes": changes}))

    def log_rollouts(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Writes the rollouts of one step, one object per question; replaces a file of the same step."""
        self._log_step(ROLLOUTS, step, records)

    def log_evaluation(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Writes the evaluation after one step, one object per question; replaces a file of the same step."""
        self._log_step(EVALUATIONS, step, [{"step": step, **record} for record in records])

    def truncate_after(self, step: int) -> None:
        """Drops every record after `step`, so that a run resumed there writes each step once."""
        for path in (self.metrics_path, self.folder / CHANGES):
            if path.exists():
                kept = [record for record in read_jsonl(path, appended=True) if record["step"] <= step]
                write_file_atomically(path, _json_lines(kept))
        for kind in (ROLLOUTS, EVALUATIONS):
            for found, path in step_files(self.folder, kind).items():
                if found > step:
                    with named_os_errors(path, "remove"):
                        path.unlink()

    def _log_step(self, kind: str, step: int, records: Sequence[dict[str, Any]]) -> None:
        path = step_path(self.folder, kind, step)
        make_folder(path.parent)
        write_file_atomically(path, _json_lines(records))


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The objects of a run's metrics.jsonl, in order.

    Leaves out a broken last line, which a kill may leave. HptError for a folder without metrics, and, naming file and
    line, for a broken line before the last one, a line without an integer `step`, or a metric that is no number.
    """
    path = Path(folder) / METRICS
    if not path.is_file():
        raise HptError(f"{folder} is not a run: it has no {METRICS}")
    lines = read_jsonl(path, appended=True)
    for line in lines:
        for name, value in line.items():
            if value is not None and type(value) not in (int, float):
                raise HptError(f"{path}, step {line['step']}: {name!r} must be a number, got {value!r}")
    return lines


def read_jsonl(path: Path, *, appended: bool = False) -> list[dict[str, Any]]:
    """The objects of one file of records, in order; HptError as for `read_metrics`.

    A last line that a kill cut off, which has no newline, is left out where `appended` says that lines are appended to
    the file. Others are written whole.
    """
    with named_os_errors(path, "read"):
        *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        lines.append(rest)
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
            if appended and rest and number == len(lines):
                break
            raise HptError(f"{path}, line {number}: broken record ({error})") from error
        if type(record.get("step")) is not int or abs(record["step"]) >= 2**63:
            raise HptError(
                f"{path}, line {number}: field 'step' must be an integer of 64 bits, got {record.get('step')!r}"
            )
        records.append(record)
    return records


def read_jsonl_if_any(path: Path) -> list[dict[str, Any]]:
    """As `read_jsonl` of a file with appended lines; nothing where there is none, as before a run's first step."""
    return read_jsonl(path, appended=True) if path.is_file() else []


def step_path(folder: str | Path, kind: str, step: int) -> Path:
    """The file of one step in a run's folder; kind: ROLLOUTS or EVALUATIONS."""
    return Path(folder) / kind / f"step-{step:06d}.jsonl"


def step_files(folder: str | Path, kind: str) -> dict[int, Path]:
    """A run's files of one kind by step, in the order of steps."""
    found = {}
    for path in (Path(folder) / kind).glob("step-*.jsonl"):
        if match := _STEP_NAME.fullmatch(path.name):
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def _json_lines(records: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(map(_json_line, records))


def _json_line(record: dict[str, Any]) -> bytes:
    return json.dumps(_finite(record), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    """`value` with null for NaN and infinities, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
