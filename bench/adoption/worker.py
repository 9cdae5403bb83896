"""The process of one variant: it trains, one step at each request that comes through a pipe.

Requests are dicts. {} asks for a step and its seconds; `memory` true for its peak memory instead; `gradients`, a path,
to save the gradients before the optimizer uses them.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import transformers

from ..losses.measure import PeakMemory
from .shapes import Shape
from .variants import CASES, Setup


def serve(
    connection: Connection, case: str, variant: str, shape: Shape, steps: int, device: str, threads: int | None
) -> None:
    """Answer `steps` requests, each with a dict; with {"failed": why} if the variant raises."""
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            CASES[case][variant](Setup(shape, device, steps, Steps(connection, device), Path(folder)))
        except EOFError:  # the parent has gone
            return
        except Exception as error:
            message = (str(error).strip().splitlines() or [""])[0]
            connection.send({"failed": f"{type(error).__name__}: {message[:200]}"})


class Steps(transformers.TrainerCallback):
    """Waits for a request at the beginning of each step, and answers at its end."""

    def __init__(self, connection: Connection, device: str):
        self.connection, self.device = connection, device

    def on_step_begin(self, *args: Any, **options: Any) -> None:
        self.request: dict[str, Any] = self.connection.recv()
        self.start()

    def start(self) -> None:
        """What is measured starts here, and not before: the rollouts are there."""
        self.peak = PeakMemory(self.device) if self.request.get("memory") else None
        self.begun = clock(self.device)

    def on_pre_optimizer_step(self, *args: Any, **options: Any) -> None:
        if "gradients" in self.request:
            parameters = options["model"].named_parameters()
            found = {name: p.grad.cpu() for name, p in parameters if p.grad is not None}
            torch.save(found, self.request["gradients"])

    def on_step_end(self, *args: Any, **options: Any) -> None:
        seconds = clock(self.device) - self.begun
        if self.peak is None:
            self.connection.send({"seconds": seconds})
        else:
            growth = self.peak.growth()
            self.connection.send({"extra_bytes": growth, "peak_bytes": self.peak.before + growth})


def clock(device: str) -> float:
    """Seconds. On a CPU those that its cores worked for this process, so that other processes do not count."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
