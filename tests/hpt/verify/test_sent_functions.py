"""Functions that no import finds, such as those of a script or a notebook: they are sent to the workers."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hpt.config.sections.rewards import RewardCallsConfig
from hpt.data.questions import Question
from hpt.support.errors import ConfigError
from hpt.support.named_functions import name_function, resolve
from hpt.verify import FunctionVerifier, Response, RewardFunctions, TrainerState

QUESTION = Question("q", "2+2=", "4")
STATE = TrainerState(global_step=3, max_steps=10, epoch=0.5)
COMPLETIONS = [Response("4", [5, 1]), Response("five?", [6, 7, 8])]


def test_closures_and_partials_reach_the_workers() -> None:
    limit = 3

    def longer_than(completions: list[str], than: int, **columns: Any) -> list[bool]:
        return [len(text) > than for text in completions]

    def exceeds(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text) > limit) for text in completions]

    def equal(response: str, answer: str) -> bool:
        return response == answer + "!" * limit

    names = {"exceeds": name_function(exceeds), "partial": name_function(partial(longer_than, than=4))}
    assert names == {"exceeds": "__main__:exceeds", "partial": "__main__:longer_than"}
    with RewardFunctions(names, RewardCallsConfig(workers=1)) as functions, functions.calling(STATE) as calls:
        calls.add(0, QUESTION, COMPLETIONS)
        assert calls.results()[0].values == {"exceeds": [0.0, 1.0], "partial": [0.0, 1.0]}
    with FunctionVerifier(name_function(equal), workers=1) as verifier:
        assert [verdict.score for verdict in verifier.score(["4!!!", "4"], ["4", "4"])] == [1.0, 0.0]


def test_a_fault_of_a_function_that_was_sent_names_it_and_its_line() -> None:
    def fails(completions: list[str]) -> list[float]:
        return [float(completions[5])]

    def crashes(completions: list[str]) -> list[float]:
        os._exit(3)

    line = fails.__code__.co_firstlineno + 1
    names = {"fails": name_function(fails), "crashes": name_function(crashes)}
    lenient = RewardFunctions(names, RewardCallsConfig(workers=1, on_error="none"))
    with lenient, lenient.calling(STATE) as calls:
        calls.add(0, QUESTION, COMPLETIONS)
        faults = calls.results()[0].faults
    assert faults["fails"] == f"raised IndexError: list index out of range (in fails, line {line})"
    assert faults["crashes"].startswith("has no result: a worker process ended, twice, while the function ran")


def test_a_function_that_is_missing_is_to_be_given_again_where_it_was_given() -> None:
    for field, said in (
        ("rewards", r"hpt.train\(resume=FOLDER, rewards=...\), or move"),
        ("gate.function", r"hpt.train\(resume=FOLDER, gate=\{'function': ...\}\), or move"),
        ("verify.function", r"verify=\{'function': ...\}\) or hpt.evaluate\(..., verifier=...\), or move"),
    ):
        with pytest.raises(ConfigError, match=said):
            resolve("__main__:never_given", field=field)


def test_what_cannot_be_sent_is_named() -> None:
    import threading

    lock = threading.Lock()

    def guarded(completions: list[str]) -> list[float]:
        with lock:
            return [0.0] * len(completions)

    with pytest.raises(ConfigError, match=r"'__main__:guarded' cannot be sent .* cannot pickle '_thread.lock'"):
        RewardFunctions({"guarded": name_function(guarded)}, RewardCallsConfig())


SCRIPT = """
import math
from hpt.config.sections.rewards import RewardCallsConfig
from hpt.data.questions import Question
from hpt.support.named_functions import name_function
from hpt.verify import Response, RewardFunctions, TrainerState

SCALE = 2

def helper(text):
    return math.sqrt(len(text)) * SCALE

async def long(completions, **columns):
    return [helper(text) for text in completions]

with RewardFunctions({"long": name_function(long)}, RewardCallsConfig(workers=1)) as functions:
    with functions.calling(TrainerState(0, 1, 0.0)) as calls:
        calls.add(0, Question("q", "?", "4"), [Response("four", [1])])
        print(calls.results()[0].values)
"""


def test_a_function_of_a_script_reaches_the_workers_with_what_it_uses(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(tmp_path / "script.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert (result.stdout, result.stderr) == ("{'long': [4.0]}\n", "")
