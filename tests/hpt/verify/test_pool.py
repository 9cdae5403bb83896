"""Functions in killable processes: limits, deaths, interruptions, and what is left behind (nothing)."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from asked_functions import asking

from hpt.support.errors import HptError
from hpt.verify import (
    MathVerifier,
    Verdict,
    pool,
)
from hpt.verify.pool import DIED

pytestmark = pytest.mark.usefixtures("importable")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not (result := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    return result


def children(pid):
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def descendants(pid):
    return children(pid) + [grandchild for child in children(pid) for grandchild in descendants(child)]


# ---- workers


def test_work_is_spread_over_the_workers():
    with asking("nap", workers=4) as verifier:
        verifier.score(["0"], [""])
        start = time.monotonic()
        verdicts = verifier.score([f"0.5{index}" for index in range(4)], [""] * 4)
        elapsed = time.monotonic() - start
    assert [verdict.score for verdict in verdicts] == [1.0] * 4
    assert elapsed < 1.5  # one after the other: 2 s


def test_workers_import_neither_torch_nor_the_main_module():
    with asking("loaded") as verifier:
        verdicts = verifier.score(["torch", "sympy", "pytest", "judging", "fixed hashes"], [""] * 5)
    assert [verdict.score for verdict in verdicts] == [0.0, 0.0, 0.0, 1.0, 1.0]


# ---- limits and deaths


def test_a_hanging_function_is_killed_at_its_limit():
    with asking("hang", timeout=0.3) as verifier:
        verifier.parsable([""])
        start = time.monotonic()
        verdicts = verifier.score(["a", "b"], ["", ""])
        elapsed = time.monotonic() - start
    assert verdicts == [Verdict("timeout", 0.0, "exceeded 0.3 s")] * 2
    assert 0.6 <= elapsed < 3.0


def test_what_a_killed_function_started_dies_with_it(tmp_path):
    note = tmp_path / "note"
    with asking("hang_with_child", timeout=1.0) as verifier:
        assert verifier.score([str(note)], [""]) == [Verdict("timeout", 0.0, "exceeded 1 s")]
        worker, _, child = _pids(note)
        assert eventually(lambda: not alive(worker) and not alive(child))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_function_leaves_in_a_session_of_its_own_ends_with_the_verifier(tmp_path):
    note = tmp_path / "note"
    with asking("fork_away") as verifier:
        assert verifier.score([str(note)], [""]) == [Verdict("correct", 1.0)]
        (process,) = eventually(lambda: _pids(note))
        assert alive(process)
    assert not alive(process)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_memory_beyond_the_limit_is_refused():
    with asking("allocate", memory_mb=128) as verifier:
        verdicts = verifier.score(["1000", "10", "100000", "64"], [""] * 4)
    exceeded = Verdict("timeout", 0.0, "exceeded 128 MiB")
    assert verdicts == [exceeded, Verdict("correct", 1.0), exceeded, Verdict("correct", 1.0)]


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_a_worker_that_ran_out_of_memory_is_replaced(tmp_path):
    calls = tmp_path / "calls"
    with asking("pid_and_allocate", memory_mb=128) as verifier:
        verifier.score([str(calls)] * 3, ["1", "1000", "2"])
    first, second, third = _pids(calls)
    assert first == second != third


def test_a_crash_is_tried_twice_and_does_not_stop_the_run(capfd):
    with asking("crash") as verifier:
        assert verifier.score(["a"], [""]) == [Verdict("timeout", 0.0, DIED)]


def test_a_worker_killed_from_outside_costs_nothing_but_time(tmp_path):
    calls = tmp_path / "calls"
    killer = threading.Thread(target=lambda: os.kill(eventually(lambda: _pids(calls))[0], signal.SIGKILL))
    with asking("slow_at_first") as verifier:
        killer.start()
        assert verifier.score([str(calls)], [""]) == [Verdict("correct", 1.0)]
    killer.join()
    first, second = _pids(calls)
    assert first != second


def _pids(file):
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def test_an_idle_worker_killed_from_outside_is_replaced(tmp_path):
    calls = tmp_path / "calls"
    with asking("pid") as verifier:
        for number in range(3):
            assert verifier.score([str(calls)], [str(number)]) == [Verdict("correct", 1.0)]
            os.kill(_pids(calls)[-1], signal.SIGKILL)
    assert len(set(_pids(calls))) == 3


def test_workers_killed_at_any_moment_neither_hang_nor_change_a_verdict(tmp_path):
    """A call dies with its worker and is tried once more; most calls here are hit at most once."""
    stop = threading.Event()

    def kill_at_random():
        choose = random.Random(0).choice
        while not stop.wait(0.1):
            if workers := [pid for server in children(os.getpid()) for pid in children(server)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(choose(workers), signal.SIGKILL)

    with asking("equal", workers=2) as verifier:
        killer = threading.Thread(target=kill_at_random)
        killer.start()
        verdicts = verifier.score([str(number) for number in range(3000)], ["7"] * 3000)
        stop.set()
        killer.join()
    assert verdicts[7] == Verdict("correct", 1.0)
    unlucky = Verdict("timeout", 0.0, DIED)
    assert {*verdicts[:7], *verdicts[8:]} <= {Verdict("incorrect", 0.0), unlucky}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; elsewhere workers outlive their fork server")
def test_a_fork_server_killed_from_outside_is_replaced_even_if_that_one_is_killed_while_it_starts(tmp_path):
    calls, others = tmp_path / "calls", set(children(os.getpid()))

    def kill_parent_and_its_successor():
        eventually(lambda: _pids(calls))
        (first,) = set(children(os.getpid())) - others
        os.kill(first, signal.SIGKILL)
        (second,) = eventually(lambda: set(children(os.getpid())) - others - {first})
        os.kill(second, signal.SIGKILL)

    killer = threading.Thread(target=kill_parent_and_its_successor)
    with asking("slow_at_first") as verifier:
        killer.start()
        assert verifier.score([str(calls)], [""]) == [Verdict("correct", 1.0)]
    killer.join()
    assert not any(alive(pid) for pid in _pids(calls))


def test_workers_that_do_not_start_are_tried_again_and_then_named(monkeypatch):
    left = [pool.START_TRIES - 1]

    def worker(server):
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionResetError
        return "a worker"

    monkeypatch.setattr(pool, "Worker", worker)
    monkeypatch.setattr(pool.WorkerPool, "_running_server", lambda self: None)
    workers = pool.WorkerPool([], workers=1, timeout=1.0, memory_mb=7)
    assert workers._new_worker() == "a worker"
    left[0] = pool.START_TRIES
    with pytest.raises(HptError, match=r"end before they can start: is verify.memory_mb = 7 too small"):
        workers._new_worker()


def test_workers_are_replaced_after_many_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "RECYCLE_AFTER", 3)
    with asking("pid") as verifier:
        verdicts = verifier.score([str(tmp_path / "calls")] * 10, [str(index) for index in range(10)])
    assert verdicts == [Verdict("correct", 1.0)] * 10
    assert len(set(_pids(tmp_path / "calls"))) == 4


# ---- ends


def test_close_ends_every_process_and_may_be_called_again():
    before = set(descendants(os.getpid()))
    verifier = MathVerifier(workers=3)
    assert verifier.score([r"\boxed{1}"], ["1"]) == [Verdict("correct", 1.0)]
    # A fork server and three workers, some of which may still be starting.
    assert eventually(lambda: len(set(descendants(os.getpid())) - before) == 4)
    ours = set(descendants(os.getpid())) - before
    verifier.close()
    verifier.close()
    assert set(descendants(os.getpid())) - before == set()
    assert not any(alive(pid) for pid in ours)
    with pytest.raises(RuntimeError, match="closed"):
        verifier.score(["1"], ["1"])
    with pytest.raises(RuntimeError, match="closed"):
        verifier.__enter__()


def test_closing_a_busy_verifier_ends_its_processes_and_fails_its_calls(tmp_path):
    note = tmp_path / "note"
    with asking("hang_with_child", timeout=600) as verifier:
        closer = threading.Thread(target=lambda: eventually(lambda: len(_pids(note)) == 3, 30) and verifier.close())
        closer.start()
        with pytest.raises(RuntimeError, match="closed"):
            verifier.score([str(note)], [""])
        closer.join()
        assert not any(alive(pid) for pid in _pids(note))


def test_two_threads_share_the_workers(tmp_path):
    with asking("equal") as verifier, ThreadPoolExecutor() as threads:
        scores = [threads.submit(verifier.score, ["a", "b"], [answer] * 2) for answer in "ab"]
        assert [[verdict.score for verdict in score.result()] for score in scores] == [[1.0, 0.0], [0.0, 1.0]]


def test_an_interrupted_call_leaves_no_stale_answers():
    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with asking("nap", workers=2) as verifier:
            verifier.score(["0"], [""])
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                verifier.score(["1.0", "1.1", "1.2"], [""] * 3)
            start = time.monotonic()
            assert verifier.score(["0.01"], [""]) == [Verdict("correct", 1.0)]
            assert time.monotonic() - start < 0.7  # the naps are not waited for
    finally:
        signal.signal(signal.SIGALRM, previous)


SCRIPT = """
import threading
from hpt.verify import FunctionVerifier, MathVerifier
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("main", flush=True)
{}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_script(tmp_path, importable, end):
    """The worker sits in a hanging function with a child process when the script ends."""
    note = tmp_path / "note"
    # A shell that runs the tests in the background has its children ignore Ctrl-C; a user's terminal does not.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    work = f"with FunctionVerifier('judging:hang_with_child', timeout=600) as v: v.score([{str(note)!r}], [''])"
    environment = os.environ | {"PYTHONPATH": str(importable)}
    script = subprocess.Popen(
        [sys.executable, "-c", f"{heed}\n{SCRIPT.format(work)}"], env=environment, stderr=subprocess.DEVNULL
    )
    pids = eventually(lambda: _pids(note), 30)
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    script.send_signal(end)
    script.wait(timeout=20)
    assert eventually(lambda: not any(alive(pid) for pid in pids)), pids


@pytest.mark.parametrize("form", ["file", "stdin", "argument"])
def test_a_script_without_a_main_guard(tmp_path, form):
    work = "with MathVerifier(workers=2) as v: print([x.status for x in v.score(['\\\\boxed{4}', 'no'], ['4', '4'])])"
    text = SCRIPT.format(work)
    (tmp_path / "script.py").write_text(text)
    arguments = {"file": [str(tmp_path / "script.py")], "stdin": ["-"], "argument": ["-c", text]}[form]
    result = subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.splitlines() == ["main", "['correct', 'unparsable']"]
    assert result.stderr == ""
