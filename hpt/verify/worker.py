"""The far side of a WorkerPool: `python -P -m hpt.verify.worker SOCKET MEMORY_MB MODULE:FUNCTION...`

One process, the nursery, imports the functions once and from then on does nothing but fork workers and kill them when
it is told to, so a fresh worker costs milliseconds. A worker reads one JSON request a line from its own socket and
answers each with one line. Nobody here outlives the pool: the nursery ends when its socket closes, and takes its
workers along.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpt.support.errors import HptError
from hpt.support.named_functions import resolve
from hpt.verify.pool import COMMAND

_MIB = 1024 * 1024
_PR_SET_PDEATHSIG = 1


@lru_cache
def _function(reference: str) -> Callable[..., Any]:
    return resolve(reference, field="verify.function")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        for reference in sys.argv[3:]:
            _function(reference)
    except HptError as error:
        control.sendall(_line({"error": str(error)}))
        return
    except BaseException as error:  # whatever a user's module raises while it is imported
        control.sendall(_line({"error": _describe(error)}))
        return
    with contextlib.suppress(ConnectionError):  # the pool was closed meanwhile
        control.sendall(_line({}))
        _nurse(control, memory_mb=int(sys.argv[2]))


def _nurse(control: socket.socket, memory_mb: int) -> None:
    workers: set[int] = set()
    while True:
        message, sockets, _, _ = socket.recv_fds(control, COMMAND.size, 1)
        if not message:
            break
        (pid,) = COMMAND.unpack(message)
        if sockets:
            nursery = os.getpid()
            pid = os.fork()
            if pid == 0:
                try:
                    control.close()
                    _limit(memory_mb, nursery)
                    _work(socket.socket(fileno=sockets[0]))
                finally:
                    os._exit(0)
            os.close(sockets[0])
            workers.add(pid)
        elif pid in workers:
            _kill(pid)
            workers.remove(pid)
    for pid in workers:
        _kill(pid)


def _kill(pid: int) -> None:
    # The worker is our child and not yet waited for, so the pid is still its own. It leads a process group: whatever a
    # user's function started dies with it.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):  # it has not made its group yet, or has ended
            kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _work(connection: socket.socket) -> None:
    connection.sendall(_line({"pid": os.getpid()}))
    for line in connection.makefile("rb"):
        request = json.loads(line)
        try:
            reply = _line({"value": _function(request["function"])(*request["arguments"])})
        except MemoryError:
            reply = _line({"exceeded": "memory"})
        except BaseException as error:
            reply = _line({"error": _describe(error)})
        connection.sendall(reply)


def _limit(memory_mb: int, nursery: int) -> None:
    """Caps the address space at `memory_mb` MiB above what the libraries take; ties this life to the nursery's.

    Both are Linux's; elsewhere a worker has its time limit only.
    """
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != nursery:
        os._exit(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_mb * _MIB
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _line(message: dict[str, Any]) -> bytes:
    # `default` takes the numbers of other libraries, such as a numpy or torch scalar.
    return json.dumps(message, default=float).encode() + b"\n"


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:
        return type(error).__name__


if __name__ == "__main__":
    main()
