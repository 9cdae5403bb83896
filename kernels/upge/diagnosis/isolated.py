"""Run a function in a process of its own, with a time limit: a crash or a hang is a result like any other."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

OUTPUT_LINES = 30  # of what the function printed
SECONDS_TO_DIE = 5.0
PR_SET_PDEATHSIG = 1  # of Linux's prctl
T = TypeVar("T")

_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Outcome:
    """What became of a function."""

    results: list[Any]
    """What it yielded, until it ended."""
    fault: str
    """Why it did not run to its end; "" if it did."""
    output: str
    """The last lines of its stdout and stderr; after a crash or a hang with the place in the code."""
    seconds: float


def run_isolated(
    function: Callable[..., Iterable[Any]], limit: float, environment: dict[str, str] | None = None, **arguments: Any
) -> Outcome:
    """Call `function(**arguments)` in a new process, and end that process with all its children after `limit` seconds.

    On Linux the process also ends with this one, and anywhere soon after its limit if this one is stopped.

    function:    of a module that this process can import. What it yields is kept as it comes, and must be JSON.
    environment: variables that the process has in addition to those of this one.
    arguments:   JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        results, output = Path(folder, "results"), Path(folder, "output")
        start = time.monotonic()
        with output.open("wb") as stream:
            process = _start(function, limit, environment or {}, arguments, results, stream)
        _running.add(process)
        try:
            process.wait(limit)
            fault = "" if process.returncode == 0 else _ending(process.returncode)
        except subprocess.TimeoutExpired:
            fault = f"did not end within {limit:g} seconds"
            process.send_signal(signal.SIGABRT)  # faulthandler prints where it is
            _wait(process)
        finally:
            _running.discard(process)
            _kill(process)
        if not _wait(process):
            fault += ", and could not be killed"
        seconds = time.monotonic() - start
        found = [json.loads(line) for line in _complete_lines(results)]
        errors = [row["error"] for row in found if "error" in row]
        printed = output.read_text(errors="replace").splitlines()
    return Outcome(
        [row["result"] for row in found if "result" in row],
        errors[0] if errors else fault,
        "\n".join(printed[-OUTPUT_LINES:]),
        seconds,
    )


def side_by_side(calls: Sequence[Callable[[], T]], at_once: int) -> Iterator[T]:
    """What each of the calls returns, in their order. Each is to call `run_isolated`; so many run at the same time."""
    with ThreadPoolExecutor(at_once) as pool:
        try:
            yield from pool.map(lambda call: call(), calls)
        except BaseException:  # threads that wait for a process do not see an interrupt
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                _kill(process)
            raise


def _start(
    function: Callable[..., Iterable[Any]],
    limit: float,
    environment: dict[str, str],
    arguments: dict[str, Any],
    results: Path,
    output: BinaryIO,
) -> subprocess.Popen[bytes]:
    """A new process that runs `_call`."""
    name = f"{function.__module__}:{function.__qualname__}"
    # -P and this process's own path: the new one imports what this one does.
    command = [sys.executable, "-P", "-m", __name__, name, json.dumps(arguments), str(results)]
    path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return subprocess.Popen(
        [*command, str(os.getpid()), str(limit)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=os.environ | environment | {"PYTHONPATH": path},
        start_new_session=True,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _ending(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _wait(process: subprocess.Popen[bytes]) -> bool:
    """Whether it ends soon. A process that hangs inside a driver cannot be killed."""
    try:
        process.wait(SECONDS_TO_DIE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _complete_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def _call(name: str, arguments: str, results: str, parent: str, limit: str) -> int:
    """In the new process: call the function and write a line for each thing that it yields."""
    _end_with(int(parent))
    faulthandler.enable()
    # The parent ends this process at its limit. This is for a parent that cannot.
    faulthandler.dump_traceback_later(float(limit) + SECONDS_TO_DIE, exit=True)
    _forbid_core_files()
    module, _, function = name.partition(":")
    with Path(results).open("w", encoding="utf-8") as stream:

        def write(**row: Any) -> None:
            stream.write(json.dumps(row) + "\n")
            stream.flush()

        try:
            for result in getattr(importlib.import_module(module), function)(**json.loads(arguments)):
                write(result=result)
        except Exception as error:
            traceback.print_exc()
            write(error=f"{type(error).__name__}: {error}")
            return 1
    return 0


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, however that ends."""
    if sys.platform != "linux":
        return
    # Linux means the thread that started this process; it waits in `run_isolated` until this one has ended.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:  # it has ended already
        sys.exit(1)


def _forbid_core_files() -> None:
    """A core file of a process with a GPU's memory is large."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(_call(*sys.argv[1:]))
