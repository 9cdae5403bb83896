"""A run: its folder, from the first check to the last checkpoint."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.config.stages import Stage, stages_of
from hpt.records.files import CONFIG, METRICS
from hpt.records.journal import Journal
from hpt.support.distributed import World
from hpt.support.errors import ConfigError, HptError, RolloutError
from hpt.training.assemble import assemble
from hpt.training.checkpoint import checkpoint_path, checkpoints, load_state, save_checkpoint, step_of
from hpt.training.metrics import rollout_records
from hpt.training.processes import connected
from hpt.training.trainer import Trainer

INTERRUPTED = 130


def start(config: Config, console: Console) -> int:
    """A new run in `config.output`; returns the exit code. Refuses a folder that holds another run's records."""
    folder = Path(config.output)

    def refuse_a_used_folder() -> None:
        metrics = folder / METRICS
        if checkpoints(folder) or (metrics.is_file() and metrics.stat().st_size):
            raise ConfigError(
                f"output = {str(folder)!r} already holds a run: continue it with --resume {folder}, "
                "or choose another output="
            )

    with connected(config) as world:
        world.once(refuse_a_used_folder)
        return _run(config, None, world, console)


def resume(folder: Path, overrides: Sequence[str], console: Console) -> int:
    """Continues the run in `folder` from its last complete checkpoint, or from the start if it has none."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"--resume {folder}: there is no run here ({folder / CONFIG} is missing)")
    for override in overrides:
        if override.partition("=")[0] in ("output", "seed", "method", "prepare"):
            raise ConfigError(
                f"{override!r}: a resumed run keeps its {override.partition('=')[0]}; start a new run instead"
            )
    config = load_config(folder / CONFIG, [f"output={folder}", *overrides])
    with connected(config) as world:
        found = world.once(lambda: checkpoints(folder))
        if found and step_of(found[-1]) > config.steps:
            raise ConfigError(f"steps = {config.steps}: the run in {folder} has done {step_of(found[-1])} already")
        return _run(config, found[-1] if found else None, world, console)


def _run(config: Config, checkpoint: Path | None, world: World, console: Console) -> int:
    folder = Path(config.output)
    if not world.main:
        console = Console(quiet=True)
    done = step_of(checkpoint) if checkpoint else 0
    stages = [stage for stage in stages_of(config) if stage.last > done]
    with (
        Journal(config, done if checkpoint else None, world, console) as journal,
        _stop_signals(world, console) as stopping,
    ):
        if config.threads:
            torch.set_num_threads(config.threads)
        if checkpoint:
            console.print(f"Resumed {folder} after step {done}.")
        for stage in stages:
            with assemble(stage.config, checkpoint, console, world) as trainer:
                if checkpoint and done >= stage.first:
                    trainer.load_state_dict(load_state(checkpoint, trainer.world))
                if stage is stages[0]:
                    journal.begin()  # only now: a resume that is refused leaves the run's folder as it was
                done = _run_stage(trainer, stage, checkpoint, config, journal, stopping)
            checkpoint = checkpoint_path(folder, done)
            if done < stage.last or (stopping() and done < config.steps):
                console.print(f"Stopped after step {done}; continue with: hpt train --resume {folder}", soft_wrap=True)
                return INTERRUPTED
    return 0


def _run_stage(
    trainer: Trainer,
    stage: Stage,
    checkpoint: Path | None,
    config: Config,
    journal: Journal,
    stopping: Callable[[], bool],
) -> int:
    """Runs the steps of a stage that are not done yet; returns the last one, which has a checkpoint."""
    folder = Path(config.output)
    done = step_of(checkpoint) if checkpoint else 0
    if not checkpoint and config.eval.every:
        with _failure_saves(trainer, folder, 0):
            journal.log({"step": 0, **_evaluation(trainer, journal, 0)})
    checkpoint_time: dict[str, float] = {}  # logged with the next step, since a step's line precedes its checkpoint
    for step in range(done + 1, stage.last + 1):
        with _failure_saves(trainer, folder, step - 1):
            line, experiences = trainer.step(step)
        journal.log_rollouts(step, rollout_records(step, experiences))
        line = {"step": step, **line, **checkpoint_time}
        with _failure_saves(trainer, folder, step):
            try:
                if config.eval.every and (step % config.eval.every == 0 or step == config.steps):
                    line |= _evaluation(trainer, journal, step)
            finally:
                journal.log(line)
        stop = stopping()  # read once: a signal that comes between the save and the return must not skip the save
        if stop or step == stage.last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            checkpoint_time = _save(trainer, folder, step)
        if stop:
            return step
    return stage.last


def _evaluation(trainer: Trainer, journal: Journal, step: int) -> dict[str, float]:
    began = time.perf_counter()
    result = trainer.evaluate()
    journal.log_evaluation(step, [question.counts() for question in result.questions])
    return {**result.metrics(), "time/eval": time.perf_counter() - began}


def _save(trainer: Trainer, folder: Path, step: int) -> dict[str, float]:
    began = time.perf_counter()
    save_checkpoint(
        folder,
        step,
        trainer.policy.model,
        trainer.renderer.tokenizer,
        trainer.state_dict(),
        keep=trainer.config.checkpoint.keep,
        weights=trainer.engine.gathered_state_dict(),
        world=trainer.world,
    )
    return {"time/checkpoint": time.perf_counter() - began}


@contextmanager
def _failure_saves(trainer: Trainer, folder: Path, done: int) -> Iterator[None]:
    """Where the rollout engine fails, saves the policy as of step `done`: no finished step is lost."""
    try:
        yield
    except RolloutError as error:
        if done and not checkpoint_path(folder, done).exists():
            _save(trainer, folder, done)
        raise HptError(f"{error}\nStopped after step {done}; continue with: hpt train --resume {folder}") from error


@contextmanager
def _stop_signals(world: World, console: Console) -> Iterator[Callable[[], bool]]:
    """Yields a collective that says whether Ctrl-C or SIGTERM has told any rank to stop after the current step.

    With one process a second signal stops at once. With several the launcher itself repeats each signal.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and world.size == 1:
            raise KeyboardInterrupt
        received.append(number)
        once_more = " (once more to stop at once)" if world.size == 1 else ""
        console.print(f"Stopping after this step, with a checkpoint{once_more} ...")

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: any(world.gather(bool(received)))
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
