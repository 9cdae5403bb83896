"""A run: its folder, from the first check to the last checkpoint."""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from hpt import metrics as measure
from hpt.assemble import assemble
from hpt.checkpoint import checkpoint_path, checkpoints, load_state, save_checkpoint, step_of
from hpt.config import Config
from hpt.errors import ConfigError, HptError, RolloutError
from hpt.progress import Progress
from hpt.recipe import load_config
from hpt.records import METRICS, RunRecords, write_atomically
from hpt.stages import Stage, stages_of
from hpt.trackers import open_trackers
from hpt.trainer import Trainer

CONFIG = "config.yaml"
INTERRUPTED = 130


def start(config: Config, console: Console) -> int:
    """A new run in `config.output`; returns the exit code. Refuses a folder that holds another run's records."""
    folder = Path(config.output)
    metrics = folder / METRICS
    if checkpoints(folder) or (metrics.is_file() and metrics.stat().st_size):
        raise ConfigError(
            f"output = {str(folder)!r} already holds a run: continue it with --resume {folder}, "
            "or choose another output="
        )
    return _run(config, None, console)


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
    found = checkpoints(folder)
    if found and step_of(found[-1]) > config.steps:
        raise ConfigError(f"steps = {config.steps}: the run in {folder} has done {step_of(found[-1])} already")
    return _run(config, found[-1] if found else None, console)


def _run(config: Config, checkpoint: Path | None, console: Console) -> int:
    folder = Path(config.output)
    done = step_of(checkpoint) if checkpoint else 0
    stages = [stage for stage in stages_of(config) if stage.last > done]
    with ExitStack() as stack:
        stack.enter_context(_claimed(folder))
        records = RunRecords(folder)
        trackers = open_trackers(
            config.track, folder, config.model_dump(mode="json"), resume_step=done if checkpoint else None
        )
        for tracker in trackers:
            stack.callback(tracker.close)
        if config.threads:
            torch.set_num_threads(config.threads)
        if checkpoint:
            console.print(f"Resumed {folder} after step {done}.")
        stopping = stack.enter_context(_stop_signals(console))
        progress = stack.enter_context(Progress(config.steps, done, console))

        def record(line: dict[str, float]) -> None:
            records.log(line)
            progress.show(line)
            for tracker in trackers:
                tracker.log(int(line["step"]), line)

        for stage in stages:
            with assemble(stage.config, checkpoint, console) as trainer:
                if stage is stages[0]:
                    # Only now, with every check passed: a run that cannot start must leave the folder as it was.
                    write_atomically(folder / CONFIG, config.to_yaml().encode())
                    records.truncate_after(done if checkpoint else -1)
                done = _run_stage(trainer, stage, checkpoint, config, records, record, stopping)
            checkpoint = checkpoint_path(folder, done)
            if done < stage.last or (stopping and done < config.steps):
                console.print(f"Stopped after step {done}; continue with: hpt train --resume {folder}", soft_wrap=True)
                return INTERRUPTED
    return 0


def _run_stage(
    trainer: Trainer,
    stage: Stage,
    checkpoint: Path | None,
    config: Config,
    records: RunRecords,
    record: Callable[[dict[str, float]], None],
    stopping: list[int],
) -> int:
    """The steps of a stage that are not done yet; returns the last one, which has its checkpoint."""
    folder = Path(config.output)
    done = step_of(checkpoint) if checkpoint else 0
    if checkpoint and done >= stage.first:
        trainer.load_state_dict(load_state(checkpoint))
    if not checkpoint and config.eval.every:
        with _failure_saves(trainer, folder, 0):
            record({"step": 0, **_evaluation(trainer, records, 0)})
    saving: dict[str, float] = {}  # of the checkpoint before a step, since its line is written before its own
    for step in range(done + 1, stage.last + 1):
        with _failure_saves(trainer, folder, step - 1):
            line, experiences = trainer.step(step)
        records.log_rollouts(step, measure.rollout_records(step, experiences))
        line = {"step": step, **line, **saving}
        with _failure_saves(trainer, folder, step):
            try:
                if config.eval.every and (step % config.eval.every == 0 or step == config.steps):
                    line |= _evaluation(trainer, records, step)
            finally:
                record(line)
        stop = bool(stopping)  # asked once: a signal between the save and the return must not lose the save
        if stop or step == stage.last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            saving = _save(trainer, folder, step)
        if stop:
            return step
    return stage.last


def _evaluation(trainer: Trainer, records: RunRecords, step: int) -> dict[str, float]:
    began = time.perf_counter()
    result = trainer.evaluate()
    records.log_evaluation(step, [question.counts() for question in result.questions])
    return {**result.metrics(), "time/eval": time.perf_counter() - began}


def _save(trainer: Trainer, folder: Path, step: int) -> dict[str, float]:
    began = time.perf_counter()
    save_checkpoint(
        folder,
        step,
        trainer.policy.model,
        trainer.tokenizer,
        trainer.state_dict(),
        keep=trainer.config.checkpoint.keep,
    )
    return {"time/checkpoint": time.perf_counter() - began}


@contextmanager
def _failure_saves(trainer: Trainer, folder: Path, done: int) -> Iterator[None]:
    """A rollout engine that fails costs no finished step: the policy is saved as step `done` left it."""
    try:
        yield
    except RolloutError as error:
        if done and not checkpoint_path(folder, done).exists():
            _save(trainer, folder, done)
        raise HptError(f"{error}\nStopped after step {done}; continue with: hpt train --resume {folder}") from error


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Holds the run's folder for this process; the lock ends with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"output = {str(folder)!r}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HptError(f"output = {str(folder)!r}: another process is training in this folder") from None
        yield


@contextmanager
def _stop_signals(console: Console) -> Iterator[list[int]]:
    """The list stays empty until Ctrl-C or SIGTERM asks to stop after the step at hand; a second one stops at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        console.print("Stopping after this step, with a checkpoint (once more to stop at once) ...")

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
