"""Fingerprints of what a run's numbers depend on: each checkpoint has those of its run, and a resume compares them.

They are a recipe's settings, the content of the data and of the model, the device, and the metrics so far. A change
breaks the promise that a resumed run is what it would have been without the stop, so it must be asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpt.config.recipe import build_config, read_config
from hpt.config.schema import Config
from hpt.model.adapters import base_model_path, holds_adapters
from hpt.records.changes import Change, read_changes
from hpt.records.files import CONFIG, METRICS, read_jsonl_if_any
from hpt.support.device import pick_device
from hpt.support.errors import ConfigError
from hpt.support.files import named_os_errors
from hpt.support.hub import cached_version

FINGERPRINTS = "fingerprints.json"

WITHOUT_EFFECT = ("output", "hardware", "track", "checkpoint")
"""Settings that no number depends on: the run's folder, what is planned for, who follows it, when it is saved."""

DIGITS = 16
"""Of a fingerprint, which tells contents apart and is no defence against an attack."""

PIECE, PIECES = 2**20, 64
"""Bytes and number of the pieces that stand for a file of weights."""


@dataclass(frozen=True)
class Fingerprints:
    """settings: the recipe's, written out. content: fingerprints of everything else, by what it is in words."""

    settings: dict[str, Any]
    content: dict[str, str]

    @classmethod
    def read(cls, checkpoint: Path) -> Fingerprints | None:
        """Those in a checkpoint; None where it has none, as those of earlier versions."""
        path = checkpoint / FINGERPRINTS
        if not path.is_file():
            return None
        with named_os_errors(path, "read"):
            return cls(**json.loads(path.read_bytes()))

    def write(self, checkpoint: Path) -> None:
        text = json.dumps({"settings": self.settings, "content": self.content}, indent=1)
        (checkpoint / FINGERPRINTS).write_text(text + "\n", encoding="utf-8")

    def with_metrics(self, run: Path, step: int) -> Fingerprints:
        """As of `step`, whose metrics are recorded."""
        known = {"the step of the checkpoint": str(step), f"{METRICS} until then": metrics_fingerprint(run, step)}
        return Fingerprints(self.settings, self.content | known)

    def config(self) -> Config | None:
        """The recipe, in which a setting newer than the checkpoint has its default; None if one is of an older hpt."""
        try:
            return build_config(self.settings, source=FINGERPRINTS)
        except ConfigError:
            return None

    def flat(self) -> dict[str, Any]:
        """All of them by one key each: a dotted setting, or words. Settings without effect are left out."""
        config = self.config()
        settings = config.model_dump(mode="json") if config else self.settings
        kept = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
        return dict(_flat(kept)) | self.content


def fingerprints_of(config: Config, data: Mapping[str, str]) -> Fingerprints:
    """Those of a run on this machine, its metrics aside. data: the fingerprints of its sources by name."""
    content = {f"the content of {name}": digits[:DIGITS] for name, digits in data.items()}
    content[f"the files of {config.model.path}"] = model_fingerprint(config.model.path)
    device = pick_device(config.device)
    if config.device == "auto":
        content["the device"] = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    if config.threads is None and device.type == "cpu":
        content["the number of CPU threads"] = str(torch.get_num_threads())
    return Fingerprints(json.loads(json.dumps(config.model_dump(mode="json"))), content)


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Of flat fingerprints. What only one of them has is a change of a setting; other stages have other data."""
    keys = [key for key in dict.fromkeys([*before, *now]) if " " not in key or (key in before and key in now)]
    return [Change(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def changes_since(
    checkpoint: Fingerprints, run: Path, step: int, now: Fingerprints
) -> tuple[list[Change], list[Change]]:
    """What has changed since the run last went on from its checkpoint of `step`, and which of it nobody asked for.

    A change is asked for on the command line: config.yaml does not have it yet. One that takes an earlier change back
    needs no asking.
    """
    saved, found = checkpoint.flat(), now.flat()
    last = dict(saved)
    for resumed_after, accepted in read_changes(run):
        if resumed_after == step:
            last |= {change.what: change.now for change in accepted}
    # As a value, not as it is spelled: "2e-3" is a text in YAML, and a learning rate all the same.
    written = dict(_flat(read_config(run / CONFIG, [("output", str(run))]).model_dump(mode="json")))
    changes = changes_between(last, found)
    unasked = [
        change
        for change in changes
        if change.now != saved.get(change.what) and written.get(change.what, change.now) == change.now
    ]
    return changes, unasked


def model_fingerprint(path: str) -> str:
    """Of a model's folder: of the names and contents of its files, of large ones in pieces. Of the hub: its version.

    The base of a folder of adapters counts too.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return cached_version(path)
    hashed = hashlib.sha256()
    if holds_adapters(folder):
        hashed.update(model_fingerprint(base_model_path(folder)).encode())
    with named_os_errors(folder, "read"):
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith(".") and file.suffix != ".md":
                hashed.update(f"{file.name} {file.stat().st_size} ".encode())
                for piece in _pieces(file):
                    hashed.update(piece)
    return hashed.hexdigest()[:DIGITS]


def metrics_fingerprint(run: Path, step: int) -> str:
    """Of the lines of a run's metrics.jsonl up to `step`; the seconds of a save come to a line after the save."""
    lines = [line for line in read_jsonl_if_any(run / METRICS) if line["step"] <= step]
    hashed = hashlib.sha256()
    for line in lines:
        line.pop("time/checkpoint", None)
        hashed.update(json.dumps(line).encode())
    return f"{len(lines)} lines, {hashed.hexdigest()[:DIGITS]}"


def _pieces(file: Path) -> Iterator[bytes]:
    """A file, or evenly spaced pieces of it with its first and last bytes: nobody wants to wait for 100 GB."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= PIECE * PIECES:
            while piece := opened.read(PIECE):
                yield piece
            return
        for number in range(PIECES):
            opened.seek(number * (size - PIECE) // (PIECES - 1), os.SEEK_SET)
            yield opened.read(PIECE)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted key. An empty mapping has none."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
