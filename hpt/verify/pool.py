"""A pool of worker processes that are killed when a call exceeds its limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

from hpt.support.errors import ConfigError, HptError
from hpt.verify.functions import portable
from hpt.verify.output import Allowance
from hpt.verify.processes import ForkServer, Worker

RECYCLE_AFTER = 1_000
"""Calls after which a worker is replaced, so that what a library caches cannot grow into the memory limit."""

DIED = "a worker process ended, twice, while the function ran: it crashed, called os._exit or was killed from outside"

START_TRIES = 10
"""How many workers in a row may end before they are ready."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a call.

    kind: "done", "failed" (the function raised), "exceeded" (a limit) or "died" (its worker process ended, twice).
    value: what the function returned, a description of what it raised, the limit, or what is known of the end.
    """

    kind: Literal["done", "failed", "exceeded", "died"]
    value: Any


class WorkerPool:
    """Calls functions in worker processes, each call under its own limits.

    functions: "module:function" each; the workers import them once, or receive them if they were given as objects.
        Arguments are pickled; results must be JSON.
    field, limits: the setting that names the functions and the section that has the limits, for errors.
    workers: calls that run at once.
    timeout: wall-clock seconds per call, counted from when a worker receives it; then the worker is killed.
    memory_mb: MiB of address space that a worker may take beyond its imported modules (Linux).
    A call under which the worker dies (a crash, or a kill from outside) is tried once more; a second death is
    the outcome. The processes are started by `start` or the first call. They are not forked from this process and
    do not import its `__main__`, so it may have threads, torch and a GPU.
    """

    def __init__(
        self,
        functions: Sequence[str],
        *,
        workers: int,
        timeout: float,
        memory_mb: int,
        field: str = "verify.function",
        limits: str = "verify",
    ) -> None:
        for name, value in (("workers", workers), ("timeout", timeout), ("memory_mb", memory_mb)):
            if not value > 0:
                raise ConfigError(f"{limits}.{name} = {value!r}: must be greater than 0")
        self._functions = portable(functions, field=field)
        self._field = field
        self._limits = limits
        self.size = workers
        self.timeout = timeout
        self.memory_mb = memory_mb
        self._printed = Allowance()
        self._server: ForkServer | None = None
        self._idle: list[Worker] = []
        self._closed = False
        self._lock = threading.RLock()  # guards the three above
        self._slots = threading.Semaphore(workers)

    def start(self) -> None:
        """Starts the processes, unless they run. ConfigError where a function cannot be imported."""
        with self._lock:
            self._check_open()
            if self._server is None:
                self._idle = [self._new_worker() for _ in range(self.size)]

    def tasks(self) -> TaskGroup:
        """A context manager to which calls are submitted one by one."""
        self.start()
        return TaskGroup(self)

    def map(self, function: str, arguments: Sequence[Sequence[Any]]) -> list[Outcome]:
        """The outcome of `function(*arguments[i])` for every i."""
        with self.tasks() as tasks:
            futures = [tasks.submit(function, *each) for each in arguments]
            return [future.result() for future in futures]

    def close(self) -> None:
        """Ends every process of the pool; calls that still run fail. May be called again."""
        with self._lock:
            self._closed = True
            if self._server is not None:
                self._server.close()
                self._server = None
            for worker in self._idle:
                worker.kill()
            self._idle.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the verifier is closed")

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """A worker for one call. It is kept for another one, unless the call raises."""
        with self._slots:
            worker = self._idle_worker() or self._new_worker()
            try:
                yield worker
            except BaseException:
                worker.kill()
                raise
            if worker.out_of_memory or worker.calls >= RECYCLE_AFTER:
                worker.kill()
                return
            with self._lock:
                self._idle.append(worker)

    def _idle_worker(self) -> Worker | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                worker = self._idle.pop()
            if worker.alive:
                return worker
            worker.kill()

    def _new_worker(self) -> Worker:
        for _ in range(START_TRIES):
            try:
                return Worker(self._running_server())
            except (ConnectionError, TimeoutError):  # also where the fork server was killed
                continue
        raise HptError(
            f"worker processes end before they can start: is {self._limits}.memory_mb = {self.memory_mb} too small, "
            "is the machine out of processes or memory, or does something kill them?"
        )

    def _running_server(self) -> ForkServer:
        """The fork server. It is started again where it was killed."""
        with self._lock:
            self._check_open()
            if self._server is not None and not self._server.alive:
                self._server.close()
                self._server = None
            if self._server is None:
                self._server = ForkServer(self._functions, self._field, self.memory_mb, self._printed)
            return self._server


class TaskGroup:
    """Calls that are submitted one by one. Leaving the group cancels those that are not done.

    For each busy worker a thread of this process waits for the reply.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._threads = ThreadPoolExecutor(pool.size, "verifier")
        self._busy: set[Worker] = set()
        self._cancelled = False
        self._lock = threading.Lock()  # guards the two above

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    def submit(self, function: str, *arguments: Any) -> Future[Outcome]:
        """Calls `function(*arguments)` as soon as a worker is free."""
        return self._threads.submit(self._run, function, arguments)

    def cancel(self) -> None:
        """Drops the calls that are not done and kills their workers."""
        with self._lock:
            self._cancelled = True
            for worker in self._busy:
                worker.interrupt()
        self._threads.shutdown(cancel_futures=True)

    def _run(self, function: str, arguments: tuple[Any, ...]) -> Outcome:
        for _ in range(2):
            try:
                with self._pool.worker() as worker, self._interruptible(worker):
                    reply = worker.call(function, arguments, self._pool.timeout)
            except TimeoutError:
                return Outcome("exceeded", f"{self._pool.timeout:g} s")
            except ConnectionError:  # the worker died
                if self._cancelled:
                    raise CancelledError from None
            else:
                return self._outcome(reply)
        return Outcome("died", DIED)

    def _outcome(self, reply: dict[str, Any]) -> Outcome:
        if "value" in reply:
            return Outcome("done", reply["value"])
        if "error" in reply:
            return Outcome("failed", reply["error"])
        return Outcome("exceeded", f"{self._pool.memory_mb} MiB")

    @contextmanager
    def _interruptible(self, worker: Worker) -> Iterator[None]:
        with self._lock:
            if self._cancelled:
                raise CancelledError
            self._busy.add(worker)
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(worker)
