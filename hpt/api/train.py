"""`hpt.train`: trains a model by a recipe, or resumes a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpt.api.run import Run
from hpt.api.settings import GivenSettings, shortened
from hpt.support.errors import ConfigError, HptError
from hpt.support.launch import rank
from hpt.support.messages import printing_messages
from hpt.support.named_functions import only_functions_given_now
from hpt.support.streams import dropping_unwritable
from hpt.version import VERSION

logger = logging.getLogger(__name__)
_running = threading.Lock()


def train(
    recipe: str | Path | None = None,
    *,
    resume: str | Path | None = None,
    accept_changes: bool = False,
    **settings: Any,
) -> Run:
    """Trains a model; returns the run when it has finished, or when Ctrl-C or SIGTERM has stopped it with a checkpoint.

        hpt.train("demo", steps=10)
        hpt.train(model="Qwen/Qwen2.5-Math-1.5B", data=questions, rewards=[correct, (brief, 0.2)], steps=200,
                  output="runs/mine", optimizer={"lr": 1e-6})
        hpt.train(resume="runs/mine", rewards=[correct, (brief, 0.2)])

    recipe: the name of a shipped recipe or a YAML file; None: `settings` are the recipe.
    resume: the folder of a run to continue from its last complete checkpoint, instead of a recipe. Functions that
        were given as objects and that no import finds must be given again.
    accept_changes: resume although what the run depends on has changed since its checkpoint: the data, the model, a
        setting in its config.yaml, the number of threads, metrics.jsonl. The run's records then say what.
    settings: every setting of a recipe is a keyword, a section is a dict; what is given wins over the recipe.
        model: a folder or a hub name, or a dict. data: a file, a hub name, a list of dicts or a datasets.Dataset, or a
        dict with `train` and `eval`. Functions and pairs (function, weight) may stand where a recipe names functions.
        Data that is given as objects is written to the run's folder.

    HptError where something is wrong that the user can mend; wrong settings are found before any model is loaded.
    """
    began = time.perf_counter()
    for name, value in (("recipe", recipe), ("resume", resume)):
        if not isinstance(value, str | Path | None):
            raise ConfigError(
                f"hpt.train: {name} = {shortened(value)}: allowed are a text and a Path; see help(hpt.train)"
            )
    if recipe is None and resume is None and not settings:
        raise ConfigError("hpt.train needs a recipe, settings, or resume=FOLDER; see help(hpt.train)")
    if recipe is not None and resume is not None:
        raise ConfigError(f"hpt.train: a run keeps its recipe; leave out {recipe!r}, or resume={str(resume)!r}")
    if accept_changes and resume is None:
        raise ConfigError("accept_changes: a new run has no changes to accept; it belongs to resume")
    with (
        only_one_run(),
        only_functions_given_now(),
        dropping_unwritable("stdout", "stderr"),
        printing_messages(quiet=rank() > 0),
    ):
        given = GivenSettings(settings)
        logger.info(f"hpt {VERSION}: reading {resume or recipe or 'the settings'}, loading PyTorch")
        if resume is not None:
            return _resume(Path(resume), given, accept_changes, began)
        return _start(recipe, given, began)


@contextmanager
def only_one_run() -> Iterator[None]:
    """Two runs at once would draw from one random state, so that neither could be repeated."""
    if not _running.acquire(blocking=False):
        raise HptError("another run trains in this process; wait for it, or start a process of its own")
    try:
        yield
    finally:
        _running.release()


def _start(recipe: str | Path | None, given: GivenSettings, began: float) -> Run:
    from hpt.config.recipe import read_config
    from hpt.config.stages import stages_of
    from hpt.records.checks import check_trackers, check_unused

    config = read_config(recipe, given.changes)
    stages_of(config)  # a rule that a stage breaks is refused before PyTorch is loaded
    records = {Path(path.replace("{output}", config.output)): data for path, data in given.records.items()}
    if rank() == 0:
        check_trackers(config.track)
        check_unused(Path(config.output))

    from hpt.data.records import write_records
    from hpt.support.process_state import restoring_process_state
    from hpt.training.run import start

    def write_data() -> None:
        for path, data in records.items():
            write_records(data, path)

    with restoring_process_state():
        finished = start(config, write_data=write_data, began=began)
    _push(Path(config.output), finished)
    return Run(config.output)


def _resume(folder: Path, given: GivenSettings, accept_changes: bool, began: float) -> Run:
    from hpt.support.process_state import restoring_process_state
    from hpt.training.run import resume, resumed_config

    if given.records:
        raise ConfigError("data: a resumed run keeps its data, which is in its folder; start a new run instead")
    config = resumed_config(folder, given.changes)
    with restoring_process_state():
        finished = resume(folder, config, accept_changes=accept_changes, began=began)
    _push(folder, finished)
    return Run(folder)


def _push(folder: Path, finished: bool) -> None:
    """Pushes the run's last checkpoint to the hub, where it has finished and its recipe says so."""
    from hpt.api.export import push_finished_run

    if finished and rank() == 0:
        push_finished_run(folder)
