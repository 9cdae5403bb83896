"""Users' functions that misbehave in the verifier's processes, and answers that are meant to break it."""

from __future__ import annotations

import os
import random
import time
from functools import partial
from pathlib import Path

from hpt.verify import MathVerifier

from .cases import Case, Place, expect
from .processes import Forked, descendants
from .world import expect_message, finish, metrics_of, train

ANSWERS = 1000
TIMEOUT, WORKERS = 0.5, 2
"""Seconds that a hostile answer may take, and how many are graded at a time."""
SLACK = 120.0
"""Seconds for the start, for restarts of workers and for a busy machine, over all hostile answers."""

BAD = {  # name: whether those responses count as timed out
    "sleeps": True,
    "ignores_signals": True,
    "allocates": True,
    "crashes": True,
    "leaves": True,
    "kills_its_parent": True,
    "recurses": True,
    "forks": False,
    "forks_away": False,
}


def cases() -> list[Case]:
    found = [
        Case(
            "function", name.replace("_", " "), "the run ends, each is counted, no process left", partial(_check, name)
        )
        for name in BAD
    ]
    return [
        *found,
        Case("function", "prints a gigabyte", "the run ends; shown up to a limit, which is said", _prints),
        Case("function", "writes to the pool's socket", "an error that says so", _forges),
        Case("function", "closes all descriptors", "an error or a count, no process left", _closes),
        Case(
            "answers",
            f"{ANSWERS:,} hostile ones",
            "at most their limit each, nothing executed, no zombie, no descriptor gained",
            _hostile_answers,
        ),
    ]


def _settings(name: str, *, timeout: float = 1.0) -> list[str]:
    return [
        f"verify.function=bench.faults.hostile:{name}",
        "verify.workers=2",
        f"verify.timeout={timeout:g}",
        "verify.memory_mb=256",
        "steps=2",
        "eval.every=0",
    ]


def _check(name: str, place: Place) -> str:
    run = place.folder / "run"
    finish(train(place.recipe, run, _settings(name)))
    lines = metrics_of(run)
    expect([line["step"] for line in lines] == [1, 2], f"steps {[line['step'] for line in lines]}")
    count = sum(int(line["verify/timeout"]) for line in lines)
    expect(bool(count) == BAD[name], f"{count} responses counted as timed out")
    return f"finished, {count} of {sum(int(line['response/count']) for line in lines)} timed out"


def _prints(place: Place) -> str:
    run = place.folder / "run"
    with train(place.recipe, run, _settings("prints_a_gigabyte", timeout=60)) as process:
        finish(process)
        printed = process.printed
        expect("what they print from now on is dropped" in process.text, "nothing is said")
    expect(printed < 2 << 20, f"{printed:,} bytes reached the run's output")
    expect(not any(line["verify/timeout"] for line in metrics_of(run)), "some timed out")
    return f"{printed:,} bytes in the run's output"


def _forges(place: Place) -> str:
    process = train(place.recipe, place.folder / "run", _settings("forges"))
    expect_message(process, "which is not its answer: does a function write to")
    return "refused"


def _closes(place: Place) -> str:
    with train(place.recipe, place.folder / "run", _settings("closes_descriptors")) as process:
        status = process.wait()
        expect(status in (0, 2) and "Traceback" not in process.text, f"status {status}: {process.text[-500:]}")
    return f"status {status}"


def _hostile_answers(place: Place) -> str:
    """In a process of its own, which has no other children and descriptors."""
    marker = place.folder / "executed"
    report = place.folder / "report"
    with Forked(lambda: _grade(hostile_answers(place.random, marker), report)) as process:
        status = process.wait(ANSWERS * TIMEOUT / WORKERS + SLACK)
        expect(status == 0, f"status {status}: {process.text[-600:]}")
    expect(not marker.exists(), "an answer was executed")
    return report.read_text()


def _grade(answers: list[str], report: Path) -> int:
    before = _descriptors()
    began = time.monotonic()
    with MathVerifier(workers=WORKERS, timeout=TIMEOUT, memory_mb=512) as verifier:
        verdicts = verifier.score(answers, ["1"] * len(answers))
        within = _descriptors()
        zombies = [pid for pid in descendants(os.getpid()) if _is_zombie(pid)]
    seconds = time.monotonic() - began
    counts = {
        status: sum(verdict.status == status for verdict in verdicts)
        for status in ("correct", "incorrect", "unparsable", "timeout")
    }
    expect(sum(counts.values()) == len(answers), f"verdicts: {counts}")
    expect(len(zombies) <= WORKERS, f"{len(zombies)} zombies")
    expect(_descriptors() == before, "descriptors were gained")
    # Two a worker and a few of the pool's own, however many workers had to be replaced.
    expect(within - before <= 2 * WORKERS + 6, f"{within - before} descriptors while it works")
    expect(not descendants(os.getpid()), "processes are left")
    allowed = counts["timeout"] * TIMEOUT + SLACK
    expect(seconds < allowed, f"{seconds:.0f} s, and {counts['timeout']} time-outs allow {allowed:.0f} s")
    report.write_text(f"{counts['timeout']} timed out, {counts['unparsable']} unparsable, in {seconds:.0f} s")
    return 0


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return False


def hostile_answers(random: random.Random, marker: Path) -> list[str]:
    """All different, since equal ones are graded once."""
    run = f"__import__('pathlib').Path('{marker}').touch()"
    kinds = [
        lambda n: rf"\boxed{{9^{{9^{{9^{{{n}}}}}}}}}",
        lambda n: rf"\boxed{{({n}!)!}}",
        lambda n: rf"\boxed{{{n}^{{10^{{10}}}} - 1}}",
        lambda n: rf"\boxed{{{'(' * (n % 3000)}1{')' * (n % 3000)}}}",
        lambda n: r"\boxed{" + r"\frac{1}{" * (n % 500) + "1" + "}" * (n % 500) + "}",
        lambda n: r"\boxed{" + r"\sqrt{" * (n % 400) + str(n) + "}" * (n % 400) + "}",
        lambda n: r"\boxed{" * (n % 5000),
        lambda n: rf"\boxed{{{random.randrange(10**4000)}}}",
        lambda n: rf"\boxed{{{run} + {n}}}",
        lambda n: rf"\boxed{{eval({run!r}), {n}}}",
        lambda n: rf"\boxed{{\text{{{run}}} {n}}}",
        lambda n: rf"\boxed{{\sum_{{i=1}}^{{10^{{{n}}}}} \frac{{1}}{{i^2}}}}",
        lambda n: rf"\boxed{{\int_0^\infty x^{{{n}}} e^{{-x^x}} dx}}",
        lambda n: rf"\boxed{{\prod_{{i=1}}^{{{n}00000}} i}}",
        lambda n: rf"\boxed{{x^{{{n}}} + \sin(x^x)^{{{n}}} = \cos^{{-{n}}}(x)}}",
        lambda n: r"\boxed{" + "+".join(f"x_{{{i}}}^{{{n}}}" for i in range(n % 300)) + "}",
        lambda n: r"\boxed{\{" + ",".join(map(str, range(n % 5000))) + r"\}}",
        lambda n: r"\boxed{" + "".join(chr(random.randrange(1, 0xD7FF)) for _ in range(200)) + f"{n}}}",
        lambda n: f"\0\x1b[2J\\boxed{{{n}\0}}" + "\\" * (n % 1000),
        lambda n: rf"\boxed{{\begin{{pmatrix}}{'1 & ' * (n % 200)} {n} \end{{pmatrix}}^{{{n}}}}}",
        lambda n: rf"\boxed{{\binom{{{n}^{{9}}}}{{{n}^{{8}}}}}}",
        lambda n: "1" * (1000 * (n % 1000)) + f" {n}",
    ]
    return [kinds[number % len(kinds)](random.randrange(10, 10**6) * ANSWERS + number) for number in range(ANSWERS)]
