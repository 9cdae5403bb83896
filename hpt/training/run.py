"""A run: its folder, from the first check to the last checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hpt.config.recipe import Setting, read_config
from hpt.config.schema import Config
from hpt.config.stages import Stage, stages_of
from hpt.records.changes import Change
from hpt.records.checkpoints import checkpoint_path, checkpoints, step_of
from hpt.records.checks import check_unused
from hpt.records.files import CONFIG, METRICS, read_jsonl_if_any
from hpt.records.journal import Journal
from hpt.support.device import peak_memory_gib
from hpt.support.distributed import World
from hpt.support.errors import ConfigError, HptError, StepError
from hpt.training.assemble import assemble
from hpt.training.checkpoint import check_checkpoint, load_state, save_checkpoint
from hpt.training.processes import connected
from hpt.training.rollout_records import rollout_records
from hpt.training.run_data import Data
from hpt.training.stop_signals import StopSignals
from hpt.training.trainer import Trainer

logger = logging.getLogger(__name__)


def start(config: Config, *, write_data: Callable[[], None] | None = None, began: float | None = None) -> bool:
    """A new run in `config.output`; returns whether it finished. Refuses a folder that holds another run's records.

    write_data: writes files that the recipe names; called once, on one rank, after the folder was checked.
    began: the time.perf_counter() at which the run's preparations began; default: now.
    """
    began = time.perf_counter() if began is None else began
    folder = Path(config.output)
    with connected(config) as world:
        world.once(lambda: check_unused(folder))
        if write_data:
            world.once(write_data)
        return _run(config, None, world, began)


def resumed_config(folder: Path, changes: Sequence[Setting]) -> Config:
    """The recipe of the run in `folder` with some settings changed; ConfigError for those that a run keeps."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"--resume {folder}: there is no run here ({folder / CONFIG} is missing)")
    for key, value in changes:
        if key in ("output", "seed", "method", "prepare") or _changes_training_data(key, value):
            name = key.partition(".")[0]
            raise ConfigError(f"'{key}={value}': a resumed run keeps its {name}; start a new run instead")
    return read_config(folder / CONFIG, [("output", str(folder)), *changes])


def _changes_training_data(key: str, value: Any) -> bool:
    if key == "data" and isinstance(value, dict):
        return "train" in value
    return key == "data" or key.startswith("data.train")


def resume(folder: Path, config: Config, *, accept_changes: bool = False, began: float | None = None) -> bool:
    """Continues the run in `folder` from its last complete checkpoint, or from the start if it has none.

    config: as `resumed_config` makes it. accept_changes: although what the run depends on has changed, such as the data
    or a setting in its config.yaml; else that is an HptError. Returns whether the run finished; began: as in `start`.
    """
    began = time.perf_counter() if began is None else began
    with connected(config) as world:
        found = world.once(lambda: checkpoints(folder))
        lost = [] if found else world.once(lambda: _check_restart(folder, accept_changes))
        if found and step_of(found[-1]) > config.steps:
            raise ConfigError(f"steps = {config.steps}: the run in {folder} has done {step_of(found[-1])} already")
        return _run(config, found[-1] if found else None, world, began, accept_changes=accept_changes, lost=lost)


def _check_restart(folder: Path, accept_changes: bool) -> list[Change]:
    """Of a run without a checkpoint: what it has lost. HptError where it had one, unless its loss is accepted."""
    lines = read_jsonl_if_any(folder / METRICS)
    saved = [line["step"] for line in lines if "time/checkpoint" in line]
    if saved and not accept_changes:
        raise HptError(
            f"{folder}: the run was saved after step {saved[-1]}, and there is no checkpoint now. Put it back, or "
            "resume with --accept-changes: the run then starts again from step 0, and what it has recorded is removed"
        )
    if lines:
        logger.warning(f"{folder} has no checkpoint: the run starts again from step 0.")
    return [Change("the checkpoints", f"up to step {saved[-1]}", "none, started again")] if saved else []


def _run(
    config: Config,
    checkpoint: Path | None,
    world: World,
    began: float,
    *,
    accept_changes: bool = False,
    lost: Sequence[Change] = (),
) -> bool:
    folder = Path(config.output)
    done = step_of(checkpoint) if checkpoint else 0
    stages = [stage for stage in stages_of(config) if stage.last > done]
    if config.rewards and not any(stage.config.gate.needs_rollouts for stage in stages):
        logger.warning('gate.kind "sft" samples no rollouts: rewards have no effect on training')
    with (
        Journal(config, checkpoint, world, accept_changes=accept_changes, lost=lost) as journal,
        StopSignals(world) as signals,
    ):
        if config.threads:
            torch.set_num_threads(config.threads)
        if checkpoint:
            logger.info(f"Resumed {folder} after step {done}.")
            check_checkpoint(checkpoint, world)
        for stage in stages:
            first = stage is stages[0]

            def when_read(data: Data, first: bool = first) -> None:
                journal.take_fingerprints(data.fingerprints, resumed=first)

            with assemble(stage.config, checkpoint, world, when_read=when_read) as trainer:
                if checkpoint and done >= stage.first:
                    trainer.load_state_dict(load_state(checkpoint, trainer.world))
                if first:
                    journal.begin()  # only now: a resume that is refused leaves the run's folder as it was
                done = _run_stage(trainer, stage, checkpoint, config, journal, signals, began)
            signals.training = False
            began = time.perf_counter()
            checkpoint = checkpoint_path(folder, done)
            if done < stage.last or (signals.received() and done < config.steps):
                logger.info(f"Stopped after step {done}; continue with: hpt train --resume {folder}")
                return False
    return True


def _run_stage(
    trainer: Trainer,
    stage: Stage,
    checkpoint: Path | None,
    config: Config,
    journal: Journal,
    signals: StopSignals,
    began: float,
) -> int:
    """Runs the steps of a stage that are not done yet; returns the last one, which has a checkpoint.

    began: when the preparations for the stage began, a time.perf_counter().
    """
    done = step_of(checkpoint) if checkpoint else 0
    preparation = {"time/start": time.perf_counter() - began}  # logged once, with the first line
    if not checkpoint and config.eval.every:
        with _failure_saves(trainer, journal, 0):
            journal.log({"step": 0, **_evaluation(trainer, journal, 0), **preparation})
        preparation = {}
    if signals.received():
        return done
    signals.training = True
    for step in range(done + 1, stage.last + 1):
        with _failure_saves(trainer, journal, step - 1):
            line, experiences = trainer.step(step)
        journal.log_rollouts(step, rollout_records(step, experiences))
        journal.log_samples(step, experiences)
        line = {"step": step, **line, "memory/peak_gib": peak_memory_gib(), **preparation}
        preparation = {}
        failure = None
        try:
            if config.eval.every and (step % config.eval.every == 0 or step == config.steps):
                line |= _evaluation(trainer, journal, step)
        except Exception as error:
            failure = error
        journal.log(line)  # a step is not saved where its metrics cannot be written
        with _failure_saves(trainer, journal, step):
            if failure:
                raise failure
        stop = signals.received()  # read once, so that a signal after the save does not skip it
        if stop or step == stage.last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            journal.amend(step, _save(trainer, journal, step))
        if stop:
            return step
    return stage.last


def _evaluation(trainer: Trainer, journal: Journal, step: int) -> dict[str, float]:
    began = time.perf_counter()
    result = trainer.evaluate()
    journal.log_evaluation(step, [question.counts() for question in result.questions])
    return {**result.metrics(), "time/eval": time.perf_counter() - began}


def _save(trainer: Trainer, journal: Journal, step: int) -> dict[str, float]:
    began = time.perf_counter()
    save_checkpoint(
        journal.folder,
        step,
        trainer.policy.model,
        trainer.renderer.tokenizer,
        trainer.state_dict(),
        keep=trainer.config.checkpoint.keep,
        fingerprints=journal.fingerprints_at(step),
        weights=trainer.engine.gathered_state_dict(),
        world=trainer.world,
    )
    return {"time/checkpoint": time.perf_counter() - began}


@contextmanager
def _failure_saves(trainer: Trainer, journal: Journal, done: int) -> Iterator[None]:
    """Where something fails, such as a user's function, saves the policy as of step `done`: no step is lost.

    Nothing is saved once the weights have changed, nor with several ranks unless all of them failed together.
    """
    try:
        yield
    except Exception as error:
        together = trainer.world.size == 1 or isinstance(error, StepError)
        if trainer.updating or not together:
            raise
        if done and not checkpoint_path(journal.folder, done).exists():
            _save_after(error, trainer, journal, done)
        stopped = f"Stopped after step {done}; continue with: hpt train --resume {journal.folder}"
        if isinstance(error, HptError):
            raise HptError(f"{error}\n{stopped}") from error
        if done:
            logger.error(stopped)
        raise


def _save_after(error: Exception, trainer: Trainer, journal: Journal, step: int) -> None:
    """Saves step `step`. Where that fails, too, as it does without a GPU that works, raises `error`."""
    try:
        _save(trainer, journal, step)
    except Exception as failure:
        logger.error("Step %d could not be saved: %s: %s", step, type(failure).__name__, failure)
        raise error from None
