"""The program of a fork server: `python -P -m hpt.verify.fork_server SOCKET MEMORY_MB`

It receives the functions and imports them once. From then on it only forks workers and kills them on command, so a new
worker costs milliseconds. A worker reads requests from its own socket and answers each one. When the pool's process
ends, the server's socket closes; the server then kills its workers and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import socket
import sys
from pathlib import Path

from hpt.support.errors import HptError
from hpt.verify.functions import load, loaded
from hpt.verify.protocol import COMMAND, encode

_MIB = 1024 * 1024
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(ConnectionError, EOFError):  # the pool was closed meanwhile
        functions, field = pickle.load(control.makefile("rb"))
        try:
            load(functions, field=field)
        except HptError as error:
            control.sendall(encode({"error": str(error)}))
        except BaseException as error:  # whatever a user's module raises while it is imported
            control.sendall(encode({"error": _describe(error)}))
        else:
            control.sendall(encode({}))
            _serve(control, memory_mb=int(sys.argv[2]))


def _serve(control: socket.socket, memory_mb: int) -> None:
    """Obeys commands until the socket closes."""
    workers: dict[int, int] = {}  # process ids by number
    adopt_orphans()  # what a function started in another session, too
    while True:
        message, sockets, _, _ = socket.recv_fds(control, COMMAND.size, 1)
        if not message:
            break
        (number,) = COMMAND.unpack(message)
        if sockets:
            workers[number] = _fork(control, sockets[0], memory_mb)
        elif number in workers:
            _kill(workers.pop(number))
        for orphan in _orphans(workers):
            os.waitpid(orphan, os.WNOHANG)
    for process in workers.values():
        _kill(process)
    while orphans := _orphans({}):
        for orphan in orphans:
            _kill(orphan)


def adopt_orphans() -> None:
    """From now on, what this process's descendants leave running are its own children (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _orphans(workers: dict[int, int]) -> list[int]:
    """The process ids of this process's children that are no workers of the pool (Linux)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    if not children.exists():
        return []
    return [int(child) for child in children.read_text().split() if int(child) not in workers.values()]


def _fork(control: socket.socket, descriptor: int, memory_mb: int) -> int:
    """The process id of a new worker that is served by the socket of this descriptor."""
    server = os.getpid()
    process = os.fork()
    if process == 0:
        try:
            control.close()
            _limit(memory_mb, server)
            _work(socket.socket(fileno=descriptor))
        finally:
            os._exit(0)
    os.close(descriptor)
    return process


def _kill(process: int) -> None:
    # A child that was not waited for keeps its process id, so this hits no other process. A worker leads a process
    # group: whatever a user's function started dies with it.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):  # it has no group yet, or has ended
            kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def _work(connection: socket.socket) -> None:
    connection.sendall(encode({}))
    requests = connection.makefile("rb")
    while True:
        try:
            call, function, arguments = pickle.load(requests)
        except EOFError:  # the pool has closed the connection
            return
        try:
            reply = encode({"call": call, "value": loaded(function)(*pickle.loads(arguments))})
        except MemoryError:
            reply = encode({"call": call, "memory": "exceeded"})
        except BaseException as error:
            reply = encode({"call": call, "error": _describe(error)})
        connection.sendall(reply)


def _limit(memory_mb: int, server: int) -> None:
    """Limits the address space to `memory_mb` MiB more than it has now, and makes this process die with the server.

    Both need Linux; elsewhere a worker has only its time limit.
    """
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:  # it died before the line above
        os._exit(0)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory_mb * _MIB
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:
        return type(error).__name__


if __name__ == "__main__":
    main()
