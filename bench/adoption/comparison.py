"""Measure the variants of a case, each in its own process, step by step in turns."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .shapes import Shape
from .variants import CASES

IMPORTS = ["bench.adoption.worker", "trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", "upge.integrations.trl"]


class Failed(Exception):
    """Why a variant cannot be measured."""


@dataclass(frozen=True)
class Settings:
    """repeats: timed steps of each variant. seconds: the time limit of a step, start-up included for the first."""

    shape: Shape
    device: str
    repeats: int
    threads: int | None
    seconds: float


def compare(case: str, settings: Settings) -> list[dict[str, Any]]:
    """One row per variant: seconds, bytes, and its gradients' difference from the first one's; or why it failed.

    The first step warms up, and its gradients are compared: all variants have the same weights and tokens there. The
    second one is measured for memory, the others for time.
    """
    rows: dict[str, dict[str, Any]] = {name: {"case": case, "variant": name} for name in CASES[case]}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(case, name, settings)) for name in rows}
        paths = {name: Path(folder) / f"{place}.pt" for place, name in enumerate(rows)}

        def ask(name: str, request: dict[str, Any]) -> dict[str, Any]:
            """The answer of a variant; {} if it has failed."""
            if "failed" in rows[name]:
                return {}
            try:
                return workers[name].step(request)
            except Failed as why:
                rows[name]["failed"] = str(why)
                return {}

        for name in rows:
            ask(name, {"gradients": str(paths[name])})
        for name in rows:
            rows[name] |= ask(name, {"memory": True})
        for _ in range(settings.repeats):
            for name in rows:
                if answer := ask(name, {}):
                    rows[name].setdefault("seconds_all", []).append(answer["seconds"])
        for row in rows.values():
            if "failed" not in row:
                row["seconds"] = min(row["seconds_all"])
        first, *others = rows
        for name in others:
            if "failed" not in rows[first] and "failed" not in rows[name]:
                rows[name]["of_first"] = rows[name]["seconds"] / rows[first]["seconds"]
                rows[name]["gradient_difference"] = difference(paths[name], paths[first])
    return list(rows.values())


def difference(path: Path, other: Path) -> float:
    """The norm of the difference of two files of gradients, relative to the norm of the second.

    A gradient that is in one file alone counts as zeros in the other.
    """
    a, b = (torch.load(file, mmap=True) for file in (path, other))
    apart = whole = 0.0
    for name in a.keys() | b.keys():  # one at a time, since float64 takes room
        ours, theirs = (grads[name].double() if name in grads else torch.zeros(()) for grads in (a, b))
        apart += float((ours - theirs).square().sum())
        whole += float(theirs.square().sum())
    return (apart / whole) ** 0.5


def _serve(*arguments: Any) -> None:
    from .worker import serve  # imports transformers

    serve(*arguments)


class _Worker:
    """A process that runs `serve`."""

    def __init__(self, case: str, variant: str, settings: Settings):
        # Importing the trainers takes 10 s, so on a CPU it is done once and forked. CUDA does not work in a fork.
        context: Any = multiprocessing.get_context("spawn" if settings.device == "cuda" else "forkserver")
        if settings.device == "cpu":
            context.set_forkserver_preload(IMPORTS)
        self.connection, other = context.Pipe()
        self.seconds = settings.seconds
        arguments = (other, case, variant, settings.shape, settings.repeats + 2, settings.device, settings.threads)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            with contextlib.suppress(BrokenPipeError):  # its last answer says why
                self.connection.send(request)
            if not self.connection.poll(self.seconds):
                self.process.kill()
                raise Failed(f"a step was not done after {self.seconds:g} s")
            answer: dict[str, Any] = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise Failed(f"its process ended with exit status {self.process.exitcode}") from None
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def close(self) -> None:
        self.connection.close()
        self.process.join(10)
        self.process.kill()


@contextlib.contextmanager
def _worker(case: str, variant: str, settings: Settings) -> Iterator[_Worker]:
    with contextlib.closing(_Worker(case, variant, settings)) as worker:
        yield worker
