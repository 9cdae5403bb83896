"""Processes of the cases: forked, so that a run starts without importing PyTorch again, and none is lost sight of."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from .cases import Broken

SECONDS = 600.0
"""Within which whatever is waited for must have happened, on a busy machine too."""

_F_SETPIPE_SZ = 1031


class Forked:
    """`work` in a fork of this process, in a session of its own. What it prints is read while it is waited for.

    This process must have no threads. Leaving the context kills it.
    """

    def __init__(self, work: Callable[[], int]) -> None:
        self._reading, writing = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(writing, _F_SETPIPE_SZ, 1 << 20)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(work, writing)
        os.close(writing)
        os.set_blocking(self._reading, False)
        self._output = b""
        self.status: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.status is None and self.running():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        if self._reading >= 0:
            os.close(self._reading)
            self._reading = -1

    def running(self) -> bool:
        self._read(0.0)
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self._read(0.0)
        return self.status is None

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit status, negative for a signal. Broken where it still runs after so many seconds."""
        end = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > end:
                raise Broken(f"still running after {seconds:g} s: {self.text[-300:]}")
            self._read(0.01)
        assert self.status is not None
        return self.status

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        """What it has printed, with its line breaks as blanks."""
        return " ".join(self._output.decode(errors="replace").split())

    @property
    def printed(self) -> int:
        """Bytes that it has printed."""
        return len(self._output)

    def _read(self, seconds: float) -> None:
        if self._reading < 0 or not select.select([self._reading], [], [], seconds)[0]:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._reading, 1 << 20):
                self._output += data
                seconds = 0.0
            time.sleep(seconds)  # the pipe has ended before the process has


def _become(work: Callable[[], int], output: int) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait_for(condition: Callable[[], object], process: Forked, what: str) -> None:
    """Waits until `condition` holds. Broken where the process ends before, or where it takes too long."""
    end = time.monotonic() + SECONDS
    while not condition():
        if not process.running():
            raise Broken(f"ended (status {process.status}) before {what}: {process.text[-300:]}")
        if time.monotonic() > end:
            raise Broken(f"not within {SECONDS:g} s: {what}")
        time.sleep(0.001)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):  # it has ended
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    own = children(pid)
    return own + [each for child in own for each in descendants(child)]


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def kill_tree(pid: int) -> None:
    """Kills a process and all that it started, those that hold the others first so that none is started again."""
    for each in [pid, *descendants(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def left_over(seconds: float = 20.0) -> list[str]:
    """The commands of processes that are still there after so many seconds; they are killed then."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        alive = descendants(os.getpid())
        if not alive:
            return []
        if time.monotonic() > end:
            commands = [f"{pid} {command_of(pid)[-120:]}" for pid in alive]
            for pid in alive:
                kill_tree(pid)
            return commands
        time.sleep(0.02)
