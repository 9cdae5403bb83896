"""Functions called in worker processes that are killed when they exceed their limits."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from hpt.support.errors import ConfigError, HptError

COMMAND = struct.Struct("q")
"""A message to the nursery: 0, with a socket attached, forks a worker on it; a pid kills that worker."""

START_LIMIT = 120.0
"""Seconds in which the nursery must have imported the functions, and a forked worker must have said hello."""

RECYCLE_AFTER = 1_000
"""Calls after which a worker is replaced, so that what a library keeps cannot grow into the memory limit."""


@dataclass(frozen=True)
class Outcome:
    """What a call came to: "done" with `value`, "failed" as `value` says, or "exceeded" the limit `value` names."""

    kind: Literal["done", "failed", "exceeded"]
    value: Any


class WorkerPool:
    """Calls importable functions on JSON-able arguments, at most `workers` at once, each call under its own limits.

    timeout: wall-clock seconds a call, counted from when a free worker is given it; then the worker is killed.
    memory_mb: MiB of address space a worker may take beyond its imported libraries (Linux).
    A worker that dies under a call (a crash, or a kill from outside) is replaced and the call is tried once more; a
    second death counts as an exceeded limit. The processes are started by `start` or the first call, never fork from
    this process and never import its `__main__`, so threads, torch and a GPU here do not matter.
    """

    def __init__(self, functions: Sequence[str], *, workers: int, timeout: float, memory_mb: int) -> None:
        for name, value in (("workers", workers), ("timeout", timeout), ("memory_mb", memory_mb)):
            if not value > 0:
                raise ConfigError(f"verify.{name} = {value!r}: must be greater than 0")
        self._functions = list(functions)
        self._size, self._timeout, self._memory_mb = workers, timeout, memory_mb
        self._nursery: _Nursery | None = None
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._closed = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Starts the nursery, once; ConfigError where a function cannot be imported."""
        if self._closed:
            raise RuntimeError("the verifier is closed")
        if self._nursery is None:
            self._nursery = _Nursery(self._functions, self._memory_mb)

    def call(self, function: str, arguments: Sequence[Sequence[Any]]) -> list[Outcome]:
        """`function(*arguments[i])` for every i, spread over the workers; outcomes in the order of the arguments."""
        with Calls(function) as calls:
            for each in arguments:
                calls.add(each)
            calls.end()
            self.serve(calls)
            return calls.outcomes()

    def serve(self, calls: Calls) -> None:
        """Works on `calls` until they are ended and done; one after the other where several threads ask for it."""
        with self._lock:
            self.start()
            try:
                while calls.unfinished:
                    self._fill()
                    self._dispatch(calls)
                    self._wait(calls)
            finally:
                # After an interruption a busy worker's late answer must not meet the next call.
                for worker in [worker for worker in self._workers if worker.job is not None]:
                    self._discard(worker)

    def close(self) -> None:
        """Ends every process of the pool. May be called again."""
        self._closed = True
        for worker in self._workers:
            worker.connection.close()
        self._workers.clear()
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    def _fill(self) -> None:
        assert self._nursery is not None
        while len(self._workers) < self._size:
            if self._failed_starts > 3 * self._size:
                raise HptError(
                    f"verifier workers end before they can start: is verify.memory_mb = {self._memory_mb} too small, "
                    "or is the machine out of processes or memory?"
                )
            try:
                self._workers.append(_Worker(self._nursery.fork()))
            except ConnectionError:  # the nursery was killed, and its workers with it
                self._failed_starts += 1
                self._nursery.close()
                self._nursery = _Nursery(self._functions, self._memory_mb)

    def _dispatch(self, calls: Calls) -> None:
        for worker in self._workers:
            if worker.idle and calls.waiting:
                job = calls.waiting.popleft()
                worker.begin(job, calls.requests[job], time.monotonic() + self._timeout)

    def _wait(self, calls: Calls) -> None:
        """Sleeps until a worker has something to say or has run out of time, or calls come; acts on it."""
        poll = select.poll()
        poll.register(calls.bell, select.POLLIN)
        by_descriptor = {}
        for worker in self._workers:
            poll.register(worker.connection, select.POLLIN | (select.POLLOUT if worker.outgoing else 0))
            by_descriptor[worker.connection.fileno()] = worker
        deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
        wait = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        for descriptor, _ in poll.poll(None if wait is None else wait * 1000 + 1):
            if descriptor == calls.bell.fileno():
                calls.bell.recv(65536)
                continue
            worker = by_descriptor[descriptor]
            try:
                reply = worker.exchange()
            except ConnectionError:
                self._bury(worker, calls)
                continue
            if reply is not None:
                self._receive(worker, reply, calls)
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline is not None and worker.deadline <= now]:
            if worker.job is None:
                self._failed_starts += 1
            else:
                calls.finish(worker.job, Outcome("exceeded", f"{self._timeout:g} s"))
            self._discard(worker)

    def _receive(self, worker: _Worker, reply: dict[str, Any], calls: Calls) -> None:
        if worker.pid is None:
            worker.pid, worker.deadline = reply["pid"], None
            self._failed_starts = 0
            return
        job = worker.end()
        if "exceeded" in reply:
            calls.finish(job, Outcome("exceeded", f"{self._memory_mb} MiB"))
        elif "error" in reply:
            calls.finish(job, Outcome("failed", reply["error"]))
        else:
            calls.finish(job, Outcome("done", reply["value"]))
        if "exceeded" in reply or worker.calls >= RECYCLE_AFTER:
            self._discard(worker)

    def _bury(self, worker: _Worker, calls: Calls) -> None:
        if worker.pid is None:
            self._failed_starts += 1
        if worker.job is not None:
            calls.retry(worker.job)
        self._discard(worker)

    def _discard(self, worker: _Worker) -> None:
        assert self._nursery is not None
        self._workers.remove(worker)
        worker.connection.close()
        if worker.pid is not None:
            self._nursery.kill(worker.pid)


class Calls:
    """Calls of one function, which may be added by one thread while `WorkerPool.serve` works on them in another."""

    def __init__(self, function: str) -> None:
        self._function = function
        self.requests: list[str] = []
        self.waiting: deque[int] = deque()
        self.bell, self._rope = socket.socketpair()  # wakes the pool from its sleep
        self._rope.setblocking(False)
        self._ended = self._abandoned = False
        self._deaths: Counter[int] = Counter()
        self._outcomes: dict[int, Outcome] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bell.close()
        self._rope.close()

    def add(self, arguments: Sequence[Any]) -> int:
        """One more call; returns its place among the outcomes."""
        job = len(self.requests)
        self.requests.append(json.dumps({"function": self._function, "arguments": list(arguments)}))
        self.waiting.append(job)
        self._ring()
        return job

    def end(self) -> None:
        """No more calls will be added."""
        self._ended = True
        self._ring()

    def abandon(self) -> None:
        """Nobody wants the outcomes any more."""
        self._abandoned = True
        self._ring()

    @property
    def unfinished(self) -> bool:
        return not self._abandoned and (not self._ended or len(self._outcomes) < len(self.requests))

    def finish(self, job: int, outcome: Outcome) -> None:
        self._outcomes[job] = outcome

    def retry(self, job: int) -> None:
        self._deaths[job] += 1
        if self._deaths[job] > 1:
            self.finish(job, Outcome("exceeded", "what a worker survives"))
        else:
            self.waiting.appendleft(job)

    def outcomes(self) -> list[Outcome]:
        return [self._outcomes[job] for job in range(len(self.requests))]

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the bell is ringing already
            self._rope.send(b"!")


class _Worker:
    """This side of one worker's socket. It has a deadline while it starts and while it has a job."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid: int | None = None
        self.job: int | None = None
        self.deadline: float | None = time.monotonic() + START_LIMIT
        self.calls = 0
        self.outgoing = memoryview(b"")
        self._incoming = bytearray()

    @property
    def idle(self) -> bool:
        return self.pid is not None and self.job is None

    def begin(self, job: int, request: str, deadline: float) -> None:
        self.job, self.deadline = job, deadline
        self.outgoing = memoryview(request.encode() + b"\n")

    def end(self) -> int:
        assert self.job is not None
        job, self.job, self.deadline = self.job, None, None
        self.calls += 1
        return job

    def exchange(self) -> dict[str, Any] | None:
        """Sends and receives what the socket takes and has; the reply once it is whole. ConnectionError at its end."""
        try:
            if self.outgoing:
                self.outgoing = self.outgoing[self.connection.send(self.outgoing) :]
            received = self.connection.recv(65536)
        except BlockingIOError:
            return None
        if not received:
            raise ConnectionResetError
        self._incoming += received
        if not self._incoming.endswith(b"\n"):
            return None
        reply = json.loads(self._incoming)
        self._incoming.clear()
        return reply


class _Nursery:
    """This side of the process that forks and kills the workers (hpt.verify.worker)."""

    def __init__(self, functions: list[str], memory_mb: int) -> None:
        self._control, theirs = socket.socketpair()
        # The search path goes along, so that what can be imported here (and from the working folder) can be there too;
        # -P keeps Python from putting another folder before it. A fixed hash seed makes sympy's orderings, and so the
        # verdicts, the same in every run.
        path = [entry or str(Path.cwd()) for entry in [*sys.path, ""]]
        environment = {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-P", "-m", "hpt.verify.worker", str(theirs.fileno()), str(memory_mb), *functions]
        with theirs:
            self._process = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others
            )
        try:
            self._await_start()
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def fork(self) -> socket.socket:
        """The socket of a new worker, non-blocking. ConnectionError if the nursery is dead."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [COMMAND.pack(0)], [theirs.fileno()])
        ours.setblocking(False)
        return ours

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ConnectionError):  # a dead nursery has taken its workers along
            self._control.sendall(COMMAND.pack(pid))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # already closed, or the nursery is gone
            # Unlike close, this reaches the nursery even if a process forked from this one still holds the socket.
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._process.wait()

    def _await_start(self) -> None:
        self._control.settimeout(START_LIMIT)
        line = bytearray()
        while not line.endswith(b"\n"):
            try:
                received = self._control.recv(4096)
            except TimeoutError:
                raise HptError(f"the verifier's process did not start within {START_LIMIT:g} s") from None
            if not received:
                raise HptError(f"the verifier's process ended while starting (exit code {self._process.wait()})")
            line += received
        self._control.settimeout(None)
        reply = json.loads(line)
        if "error" in reply:
            raise ConfigError(f"the verifier cannot start: {reply['error']}")
