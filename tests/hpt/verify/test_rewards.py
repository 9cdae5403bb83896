"""Reward functions in TRL's form: what they receive, what they return, and what happens where they fail."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpt.config.sections.rewards import RewardCallsConfig
from hpt.data.questions import Question
from hpt.support.errors import ConfigError, RewardError
from hpt.support.named_functions import name_function
from hpt.verify import FunctionVerifier, Response, RewardFunctions, TrainerState, protocol
from hpt.verify.rewards import GroupRewards
from hpt.verify.trial import try_rewards

FUNCTIONS = """
import asyncio, fractions, inspect, json, os, time
from functools import partial

def seen(log_extra, log_metric, **arguments):
    for name, values in arguments.items():
        log_extra(name, [repr(value) for value in values] if isinstance(values, list) else [repr(values)])
    return [0.0] * len(arguments["prompts"])

def fixed(completions, solution): return [float(text == gold) for text, gold in zip(completions, solution)]
def of_ids(completion_ids, log_metric, **kwargs):
    log_metric("tokens", sum(map(len, completion_ids)))
    return [len(ids) for ids in completion_ids]
def some(completions, **kwargs): return [None if "?" in text else fractions.Fraction(1, 2) for text in completions]

LOOPS = set()

async def judged(completions, **kwargs):
    await asyncio.sleep(0)
    LOOPS.add(asyncio.get_running_loop())
    return [len(LOOPS)] * len(completions)

class Longer:
    __name__ = "longer"
    def __init__(self, than): self.than = than
    def __call__(self, completions, **kwargs): return [len(text) > self.than for text in completions]

longer = Longer(3)
at_least = partial(lambda completions, least, **kwargs: [len(text) >= least for text in completions], least=2)

def equal(response, answer): return response == answer
def fails(completions, **kwargs): raise ValueError("no box")
def leaves(completions, **kwargs): raise SystemExit(3)
def few(completions, **kwargs): return [1.0]
def text(completions, **kwargs): return ["0.5"] * len(completions)
def nan(completions, **kwargs): return [0.0, float("nan")]
def infinite(completions, **kwargs): return [float("-inf")] * len(completions)
def huge(completions, **kwargs): return [1e30, 1e39]
def very_huge(completions, **kwargs): return [10**400] * len(completions)
def one_number(completions, **kwargs): return 1.0
def a_dict(completions, **kwargs): return {"a": 1, "b": 2}
def hangs(completions, **kwargs): time.sleep(600)
def logs_much(completions, log_extra, **kwargs):
    log_extra("much", ["x" * 7_000_000] * len(completions))
    return [1.0] * len(completions)
def forges(completions, **kwargs):
    # Answers the call itself, in place of the worker's program.
    frame = inspect.currentframe()
    while frame.f_code.co_name != "_work": frame = frame.f_back
    message = json.dumps({"call": frame.f_locals["call"], "value": kwargs["reply"][0]})
    frame.f_locals["connection"].sendall(message.encode() + b"\\n")
    os._exit(0)
def greedy(completions, **kwargs): return [len(bytearray(2000 << 20))] * len(completions)
"""
GOOD = ["seen", "fixed", "of_ids", "some", "judged", "longer", "at_least"]
BROKEN = [
    "fails",
    "leaves",
    "few",
    "text",
    "nan",
    "infinite",
    "huge",
    "very_huge",
    "one_number",
    "a_dict",
    "logs_much",
    "forges",
]
QUESTION = Question(
    "q1",
    "2+2=",
    "4",
    demonstration="4",
    columns={"prompt": "2+2=", "solution": "4", "completion": "x", "meta": {"n": 1}, "hint": None},
)
STATE = TrainerState(global_step=3, max_steps=10, epoch=0.5)
COMPLETIONS = [Response("4", [5, 1]), Response("five?", [6, 7, 8])]
TRL = "trl.rewards"


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardFunctions]:
    folder = tmp_path_factory.mktemp("importable")
    (folder / "rewarding.py").write_text(FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        names = {name: f"rewarding:{name}" for name in [*GOOD, *BROKEN]}
        with RewardFunctions(names, RewardCallsConfig(workers=1)) as functions:
            yield functions


def rewarded(functions: RewardFunctions, name: str, question: Question = QUESTION) -> Any:
    with functions.calling(STATE, only=name) as calls:
        calls.add("key", question, COMPLETIONS)
        return calls.results()["key"]


def values(functions: RewardFunctions, name: str, question: Question = QUESTION) -> list[float | None]:
    return rewarded(functions, name, question).values[name]


# ---- what a function receives


def test_a_function_receives_what_trl_hands_over(functions: RewardFunctions) -> None:
    assert rewarded(functions, "seen").extra == {
        "prompts": ["'2+2='"] * 2,
        "completions": ["'4'", "'five?'"],
        "completion_ids": ["[5, 1]", "[6, 7, 8]"],
        "solution": ["'4'"] * 2,
        "meta": ["{'n': 1}"] * 2,
        "hint": ["None"] * 2,
        "trainer_state": ["TrainerState(global_step=3, max_steps=10, epoch=0.5)"],
    }


def test_a_chat_comes_as_messages(functions: RewardFunctions) -> None:
    chat = Question("q", ({"role": "user", "content": "2+2="},), "4", columns={"solution": "4"})
    extra = rewarded(functions, "seen", chat).extra
    assert extra["prompts"] == ["[{'role': 'user', 'content': '2+2='}]"] * 2
    assert extra["completions"][0] == "[{'role': 'assistant', 'content': '4'}]"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fixed", [1.0, 0.0]),  # has no **kwargs: it gets the arguments it names
        ("of_ids", [2.0, 3.0]),
        ("some", [0.5, None]),
        ("longer", [0.0, 1.0]),
        ("at_least", [0.0, 1.0]),
    ],
)
def test_the_forms_of_a_function(functions: RewardFunctions, name: str, expected: list[float | None]) -> None:
    assert values(functions, name) == expected


def test_what_a_function_logs_comes_back(functions: RewardFunctions) -> None:
    assert rewarded(functions, "of_ids").metrics == {"tokens": [5.0]}


def test_coroutines_share_an_event_loop_over_calls(functions: RewardFunctions) -> None:
    assert values(functions, "judged") == [1, 1] == values(functions, "judged")


def test_an_argument_that_no_column_has_is_an_error(functions: RewardFunctions) -> None:
    functions.check_columns(QUESTION.columns, "train.jsonl")
    with pytest.raises(ConfigError, match=r"'rewarding:fixed' asks for 'solution', which train.jsonl has no column"):
        functions.check_columns({"prompt": "2+2="}, "train.jsonl")


def test_the_rewards_of_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

    (tmp_path / "my_trl.py").write_text(
        "from trl.rewards import get_cosine_scaled_reward\ncosine = get_cosine_scaled_reward(max_len=4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {
        "accuracy": f"{TRL}:accuracy_reward",
        "format": f"{TRL}:think_format_reward",
        "cosine": "my_trl:cosine",
        "overlong": name_function(get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)),
        "repetition": name_function(get_repetition_penalty_reward(ngram_size=1)),
    }
    assert names["overlong"] == "__main__:soft_overlong_punishment_reward"
    chat = Question("q", ({"role": "user", "content": "?"},), "4", columns={"solution": "$4$"})
    texts = [r"<think>so</think> \boxed{4}", r"\boxed{5}"]
    completions = [Response(text, ids) for text, ids in zip(texts, ([5, 5, 7], [1, 2, 3, 4, 5]), strict=True)]
    with (
        RewardFunctions(names, RewardCallsConfig(workers=1)) as functions,
        functions.calling(STATE) as calls,
    ):
        calls.add(0, chat, completions)
        found = calls.results()[0].values
    assert found["accuracy"] == [1.0, 0.0]
    assert found["format"] == [1.0, 0.0]
    assert found["overlong"] == [-0.5, -1.0]
    assert found["repetition"] == [pytest.approx(-1 / 3), 0.0]
    assert found["cosine"][0] > 0.5 > -0.4 > found["cosine"][1]  # type: ignore[operator]


# ---- what goes wrong


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", r"raised ValueError: no box \(.*rewarding.py, line \d+\)"),
        ("leaves", "raised SystemExit: 3"),
        ("few", r"returned 1 rewards, \[1.0\], for 2 completions"),
        ("text", r"returned '0.5' for completion 1; allowed: a number from -1e\+30 to 1e\+30, or None"),
        ("huge", r"returned 1e\+39 for completion 2"),  # finite, but not in float32
        ("very_huge", r"returned -?10{9}.* for completion 1"),  # not even in float64
        ("nan", "returned nan for completion 2"),
        ("infinite", "returned -inf for completion 1"),
        ("one_number", "returned 1.0; allowed: a list"),
        ("a_dict", r"returned \{'a': 1, 'b': 2\}; allowed: a list"),
    ],
)
def test_a_fault_names_the_function_the_question_and_what_came(
    functions: RewardFunctions, name: str, said: str
) -> None:
    with pytest.raises(RewardError, match=rf"'rewarding:{name}' {said}.*, called on 2 completions of question q1"):
        rewarded(functions, name)


def test_a_reply_above_the_limit_is_not_called_forged(
    functions: RewardFunctions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is 16 MiB."""
    assert rewarded(functions, "logs_much").values["logs_much"] == [1.0, 1.0]
    monkeypatch.setattr(protocol, "LONGEST_MESSAGE", 1 << 17)
    said = r"sent a reply that is longer than the limit of 0\.125 MiB: does a function return or log that much"
    with pytest.raises(RewardError, match=said):
        rewarded(functions, "logs_much")


GOOD_REPLY: dict[str, Any] = {"rewards": [0.5, None], "metrics": {"m": [1.0]}, "extra": {"e": ["x", 1, 0.5, None]}}


@pytest.mark.parametrize(
    "reply",
    [
        "hi",
        5,
        None,
        [],
        {},
        {"fault": 5},
        {"rewards": [0.5, 0.5]},
        GOOD_REPLY | {"rewards": [0.5]},
        GOOD_REPLY | {"rewards": ["x", "x"]},
        GOOD_REPLY | {"rewards": [0.5, math.nan]},
        GOOD_REPLY | {"rewards": [0.5, 10**400]},
        GOOD_REPLY | {"rewards": {"a": 0.5, "b": 0.5}},
        GOOD_REPLY | {"metrics": [1.0]},
        GOOD_REPLY | {"metrics": {"m": 1.0}},
        GOOD_REPLY | {"metrics": {"m": ["x"]}},
        GOOD_REPLY | {"extra": {"e": "x"}},
        GOOD_REPLY | {"extra": {"e": [["x"]]}},
        GOOD_REPLY | {"more": 1},
    ],
)
def test_a_forged_reply_of_another_form_is_an_error_that_says_so(functions: RewardFunctions, reply: Any) -> None:
    question = replace(QUESTION, columns={"reply": reply})
    with pytest.raises(RewardError, match="which is not its answer: does a function write to"):
        rewarded(functions, "forges", question)


def test_a_reply_of_the_right_form_is_taken(functions: RewardFunctions) -> None:
    found = rewarded(functions, "forges", replace(QUESTION, columns={"reply": GOOD_REPLY}))
    assert found.values["forges"] == [0.5, None]
    assert (found.metrics, found.extra) == (GOOD_REPLY["metrics"], GOOD_REPLY["extra"])


def test_faults_and_limits_count_as_none_where_the_recipe_says_so(
    functions: RewardFunctions, caplog: pytest.LogCaptureFixture
) -> None:
    names = {name: f"rewarding:{name}" for name in ("fails", "hangs", "greedy", "longer")}
    settings = RewardCallsConfig(workers=1, timeout=2, memory_mb=512, on_error="none")
    with RewardFunctions(names, settings) as lenient, lenient.calling(STATE) as calls:
        calls.add(0, QUESTION, COMPLETIONS)
        found = calls.results()[0]
    assert found.values == {"fails": [None] * 2, "hangs": [None] * 2, "greedy": [None] * 2, "longer": [0.0, 1.0]}
    assert found.failures == {"fails": 2, "hangs": 2, "greedy": 2, "longer": 0}
    assert found.faults["hangs"].startswith("exceeded 2 s")
    assert found.faults["greedy"].startswith("exceeded 512 MiB" if sys.platform == "linux" else "raised")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3


def test_the_first_call_is_on_a_demonstration_and_a_wrong_answer(
    functions: RewardFunctions, caplog: pytest.LogCaptureFixture
) -> None:
    names = {name: f"rewarding:{name}" for name in ("fixed", "some", "longer")}
    weights = {"fixed": 1.0, "verifier": 0.5, "some": -2.0, "longer": 0.0}
    caplog.set_level("INFO")
    verifier = FunctionVerifier("rewarding:equal", workers=1)
    with RewardFunctions(names, RewardCallsConfig(workers=1)) as own, verifier:
        try_rewards(weights, own, verifier, QUESTION, lambda text: [1], STATE)
    where = "on the demonstration of question q1"
    assert caplog.messages == [
        f"Reward fixed, weight 1: 1 {where}, 0 on the wrong answer 'I do not know.'",
        f"Reward verifier, weight 0.5: 1 {where}, 0 on the wrong answer 'I do not know.'",
        f"Reward some, weight -2: 0.5 {where}, 0.5 on the wrong answer 'I do not know.'",
        f"Reward longer, weight 0 (only recorded): 0 {where}, 1 on the wrong answer 'I do not know.'",
    ]


def test_a_function_that_fails_at_its_first_call_is_refused_even_if_errors_count_as_none(
    functions: RewardFunctions,
) -> None:
    lenient = RewardFunctions({"fails": "rewarding:fails"}, RewardCallsConfig(workers=1, on_error="none"))
    with lenient, pytest.raises(RewardError, match=r"'rewarding:fails' raised .* tried on the demonstration of .* and"):
        try_rewards({"fails": 1.0}, lenient, None, QUESTION, lambda text: [1], STATE)


def test_rewards_of_further_completions_are_added() -> None:
    first = GroupRewards({"f": [1.0]}, {"f": 2}, {"f": "raised KeyError"}, {"m": [1.0]}, {"kind": ["a"]})
    more = GroupRewards(
        {"f": [None, 3.0]}, {"f": 1}, {"f": "raised OSError"}, {"m": [2.0], "n": [5.0]}, {"kind": ["b"]}
    )
    first.extend(more)
    assert first == GroupRewards(
        {"f": [1.0, None, 3.0]}, {"f": 3}, {"f": "raised OSError"}, {"m": [1.0, 2.0], "n": [5.0]}, {"kind": ["a", "b"]}
    )
