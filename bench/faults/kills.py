"""kill -9 at random moments of every method: training, resuming, saving; the run, all of it, or its verifier."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hpt.config.recipe import shipped_methods

from .cases import Case, Place, expect
from .processes import Forked, children, kill_tree, left_over, wait_for
from .world import expect_same, finish, finish_run, resume, train

LATEST = 0.95
"""Moments are drawn from this share of the time that an undisturbed run takes."""
SAVE_SECONDS = 0.03
"""About as long as a save of the tiny model takes."""


def cases(kills: int) -> list[Case]:
    """A case for each method, with so many kills in all."""
    variants = {name: [f"method={name}"] for name in shipped_methods()}
    variants["hpt with adapters"] = ["method=hpt", "model.lora={rank: 4}"]
    variants["hpt with probing"] = ["method=hpt", "rollout.probe=2"]
    found = []
    for number, (name, settings) in enumerate(variants.items()):
        own = [KINDS[(each + each // len(variants)) % len(KINDS)] for each in range(number, kills, len(variants))]
        if own:
            found.append(
                Case(
                    "kill -9",
                    f"{name}: {', '.join(kind.__name__.replace('_', ' ') for kind in own)}",
                    "bit-equal to an undisturbed run",
                    partial(_check, settings=settings, kinds=own),
                )
            )
    return found


def _check(place: Place, *, settings: Sequence[str], kinds: Sequence[Callable[[Killing], bool]]) -> str:
    reference = place.folder / "reference"
    began = time.monotonic()
    finish(train(place.recipe, reference, settings))
    seconds = time.monotonic() - began
    for number, kind in enumerate(kinds):
        run = place.folder / f"run-{number}"
        killing = Killing(place, run, settings, seconds)
        while not kind(killing):  # it had finished before: once more, and earlier
            shutil.rmtree(run, ignore_errors=True)
            killing.seconds *= 0.7
        finish_run(place.recipe, run, settings)
        expect_same(run, reference)
    return f"{len(kinds)} of {len(kinds)} bit-equal"


class Killing:
    """A run that is to be killed. seconds: how long it takes undisturbed."""

    def __init__(self, place: Place, run: Path, settings: Sequence[str], seconds: float) -> None:
        self.place, self.run, self.settings, self.seconds = place, run, settings, seconds

    def start(self) -> Forked:
        return train(self.place.recipe, self.run, self.settings)

    def go_on(self) -> Forked:
        return resume(self.run) if (self.run / "config.yaml").exists() else self.start()

    def wait(self, process: Forked) -> bool:
        """Waits until a random moment; whether the process still runs then."""
        end = time.monotonic() + self.place.random.uniform(0, LATEST * self.seconds)
        while process.running() and time.monotonic() < end:
            time.sleep(0.001)
        return process.running()

    def kill(self, begin: Callable[[], Forked]) -> bool:
        with begin() as process:
            in_time = self.wait(process)
            process.send(signal.SIGKILL)
            process.wait()
        expect(not left_over(), "processes are left after the kill")
        return in_time


def the_run(killing: Killing) -> bool:
    return killing.kill(killing.start)


def the_run_and_all_it_started(killing: Killing) -> bool:
    with killing.start() as process:
        in_time = killing.wait(process)
        kill_tree(process.pid)
        process.wait()
    expect(not left_over(), "processes are left after the kill")
    return in_time


def a_worker_of_the_verifier(killing: Killing) -> bool:
    return _in_verifier(
        killing, lambda process: [each for server in children(process.pid) for each in children(server)]
    )


def the_parent_of_the_workers(killing: Killing) -> bool:
    return _in_verifier(killing, lambda process: children(process.pid))


def _in_verifier(killing: Killing, found: Callable[[Forked], list[int]]) -> bool:
    """The run goes on by itself."""
    with killing.start() as process:
        killing.wait(process)
        while process.running() and not found(process):
            time.sleep(0.001)
        victims = found(process)[:1] if process.running() else []
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        finish(process)
    return bool(victims)


def the_run_while_it_resumes(killing: Killing) -> bool:
    return killing.kill(killing.start) and killing.kill(killing.go_on)


def the_run_while_it_saves(killing: Killing) -> bool:
    folder = killing.run / "checkpoints"
    with killing.start() as process:
        if killing.place.random.random() < 0.5:
            wait_for(lambda: list(folder.glob("step-*")), process, "the first checkpoint")
        wait_for(lambda: list(folder.glob(".partial-*")), process, "a save")
        time.sleep(killing.place.random.uniform(0, SAVE_SECONDS))
        in_time = process.running()
        process.send(signal.SIGKILL)
        process.wait()
    expect(not left_over(), "processes are left after the kill")
    return in_time


KINDS = (
    the_run,
    the_run_while_it_saves,
    the_run_and_all_it_started,
    a_worker_of_the_verifier,
    the_run_while_it_resumes,
    the_parent_of_the_workers,
)
