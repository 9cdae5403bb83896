"""`hpt` commands as subprocesses. Finished runs are kept, interrupted ones continued."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.records.changes import in_words
from hpt.records.checkpoints import checkpoint_path
from hpt.records.files import CONFIG
from hpt.records.fingerprints import Fingerprints, changes_between
from hpt.support.errors import HptError
from hpt.support.files import make_folder


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Lock the folder of all runs; wait while another process has the lock.

    Runs inherit the lock. So a run that outlives a killed benchmark ends before the next benchmark starts.
    """
    make_folder(folder)
    with (folder / ".lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the runs in {folder}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def train(folder: Path, recipe: str, settings: Sequence[str]) -> None:
    """`hpt train RECIPE output=FOLDER SETTINGS` on one thread. Continues an unfinished run in the folder.

    HptError if the folder has a run with other settings.
    """
    if not (folder / CONFIG).is_file():
        _hpt("train", recipe, f"output={folder}", *settings)
        return
    asked, found = load_config(recipe, [f"output={folder}", *settings]), load_config(folder / CONFIG, [])
    changes = changes_between(_settings(found), _settings(asked))
    if changes:
        raise HptError(f"{folder} holds a run with other settings: {in_words(changes)}; give another folder of runs")
    if not checkpoint_path(folder, found.steps).is_dir():
        _hpt("train", "--resume", str(folder))


def _settings(config: Config) -> dict[str, Any]:
    """By dotted key, without those that no number depends on."""
    return Fingerprints(config.model_dump(mode="json"), {}).flat()


def evaluate(model: Path, output: Path, arguments: Sequence[str]) -> None:
    """`hpt eval MODEL ARGUMENTS` into a folder, unless it already has results."""
    if not (output / "summary.json").is_file():
        _hpt("eval", str(model), "--output", str(output), *arguments)


def _hpt(*arguments: str) -> None:
    """Its errors are on the terminal. HptError if it fails."""
    ended = subprocess.run(
        [sys.executable, "-m", "hpt", *arguments],
        stdout=subprocess.DEVNULL,
        close_fds=False,  # inherit the lock of `hold`
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if ended.returncode:
        raise HptError(f"this run ended with status {ended.returncode}: hpt {shlex.join(arguments)}")


def machine() -> str:
    """The conditions under which runs are timed."""
    return f"{os.cpu_count()} CPU cores, torch {torch.__version__}, one thread per run"
