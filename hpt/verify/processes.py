"""Handles of the processes behind a pool: the fork server, and the workers that it forks."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from hpt.support.errors import ConfigError, HptError
from hpt.verify.functions import Portable
from hpt.verify.output import Allowance, PrintedOutput
from hpt.verify.protocol import COMMAND, NotAMessage, encode_request, is_open, receive

START_LIMIT = 120.0
"""Seconds in which the fork server must have imported the functions, and a forked worker must be ready."""


class ForkServer:
    """Starts `python -m hpt.verify.fork_server`, which imports the functions once and then forks and kills workers.

    field: the setting that names the functions, for errors. memory_mb: MiB that a worker may take beyond the imported
    modules (Linux). printed: what is shown of their output.
    ConfigError where a function cannot be imported; HptError where the process does not start; ConnectionError where
    it is killed meanwhile.
    """

    def __init__(self, functions: Portable, field: str, memory_mb: int, printed: Allowance) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # commands must not mix
        self._control, theirs = socket.socketpair()
        # The server gets this process's search path, so it can import what this process can, also from the working
        # folder; -P keeps Python from putting another folder first. The fixed hash seed fixes sympy's orderings, and
        # so the verdicts, in all runs.
        path = [entry or str(Path.cwd()) for entry in [*sys.path, ""]]
        environment = {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
        }
        arguments = [str(theirs.fileno()), str(memory_mb)]
        self._output = PrintedOutput(field, printed)
        with theirs, self._output.end_for_processes() as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hpt.verify.fork_server", *arguments],
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches only this process, which then ends the others
            )
        try:
            self._wait_until_ready(functions, field)
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def _wait_until_ready(self, functions: Portable, field: str) -> None:
        self._control.settimeout(START_LIMIT)
        try:
            self._control.sendall(pickle.dumps((functions, field)))
            reply = receive(self._control, time.monotonic() + START_LIMIT)
        except TimeoutError:
            raise HptError(f"the verifier's process did not start within {START_LIMIT:g} s") from None
        except ConnectionError:
            code = self._process.wait()
            if code == -signal.SIGKILL:
                raise ConnectionResetError("the verifier's process was killed while starting") from None
            raise HptError(f"the verifier's process ended while starting (exit code {code})") from None
        if "error" in reply:
            raise ConfigError(f"the verifier cannot start: {reply['error']}")
        self._control.settimeout(None)

    @property
    def alive(self) -> bool:
        return is_open(self._control)

    def fork(self) -> tuple[int, socket.socket]:
        """Forks a worker; returns its number and the connection to it. ConnectionError where the server is dead."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            number = next(self._numbers)
            try:
                socket.send_fds(self._control, [COMMAND.pack(number)], [theirs.fileno()])
            except OSError as error:  # it is dead, and another thread may have closed it meanwhile
                ours.close()
                raise ConnectionResetError("the fork server is dead") from error
        return number, ours

    def kill(self, number: int) -> None:
        """Kills a worker and all processes it started."""
        with self._lock, contextlib.suppress(OSError):  # a dead server has taken its workers along
            self._control.sendall(COMMAND.pack(number))

    def close(self) -> None:
        """Ends the server and its workers."""
        with contextlib.suppress(OSError):  # already closed, or the server is dead
            # Unlike close, this reaches the server even if a process forked from this one still holds the socket.
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._process.wait()
        self._output.close()


class Worker:
    """A process that runs one call at a time. ConnectionError or TimeoutError where it does not start."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._number, self._connection = server.fork()
        self.calls = 0
        self.out_of_memory = False
        try:
            receive(self._connection, time.monotonic() + START_LIMIT)
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        return is_open(self._connection)

    def call(self, function: str, arguments: tuple[Any, ...], timeout: float) -> dict[str, Any]:
        """The reply to a call.

        TimeoutError after `timeout` seconds; ConnectionError where the worker dies; NotAMessage for another reply.
        """
        deadline = time.monotonic() + timeout
        self.calls += 1
        call = uuid.uuid4().hex
        self._connection.settimeout(timeout)
        self._connection.sendall(encode_request(call, function, arguments))
        reply = receive(self._connection, deadline)
        if reply.pop("call", None) != call:
            raise NotAMessage(str(reply).encode())
        self.out_of_memory = "memory" in reply
        return reply

    def interrupt(self) -> None:
        """Makes a call that another thread waits for fail with ConnectionError."""
        with contextlib.suppress(OSError):  # the worker has ended
            self._connection.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        self._connection.close()
        self._server.kill(self._number)
