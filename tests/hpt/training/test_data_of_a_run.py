"""What a run does with its data before a model is loaded: sources, wrong demonstrations, answers that nothing reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.data.order import MixedOrder
from hpt.data.training_data import read_questions
from hpt.support.distributed import ALONE
from hpt.support.errors import DataError
from hpt.training import run_data
from hpt.training.assemble import assemble
from hpt.training.run_data import check_verifiable, load_data, without_wrong_demonstrations
from hpt.verify import make_verifier

RIGHT = {"prompt": "1+1=", "answer": "2", "demonstration": "\\boxed{2}"}
WRONG = RIGHT | {"demonstration": "\\boxed{3}"}
SFT = "gate={kind: sft}"

TrainedIds = Callable[[Config], list[str]]


def write(path: Path, *records: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def config_of(world: Path, folder: Path, *settings: str) -> Config:
    usual = [f"output={folder / 'run'}", "data.eval=null", "eval.every=0", "verify.function=null"]
    return load_config(world, [*usual, *settings])


@pytest.fixture(scope="module")
def trained_ids(world: Path) -> Iterator[TrainedIds]:
    """Which questions a run trains on; those without a demonstration that RL alone trains on are marked."""
    with make_verifier(load_config(world, ["verify.function=null"]).verify) as verifier:

        def find(config: Config) -> list[str]:
            data = load_data(config)
            check_verifiable(config, data, verifier)
            sources = without_wrong_demonstrations(config, data.sources, verifier, ALONE)
            alone = " alone" if config.gate.needs_demonstrations else ""
            questions = [question for source in sources for question in source.questions]
            return [question.id + ("" if question.demonstration else alone) for question in questions]

        yield find


def test_wrong_demonstrations_are_kept_dropped_or_refused_and_counted_always(
    world: Path, tmp_path: Path, trained_ids: TrainedIds, caplog: pytest.LogCaptureFixture
) -> None:
    data = write(tmp_path / "d.jsonl", RIGHT, WRONG, RIGHT, WRONG)
    train = f"data.train={data}"
    assert trained_ids(config_of(world, tmp_path, train)) == ["#1", "#2", "#3", "#4"]
    assert "refuses the final answer of 2 of 4 demonstrations: 2 incorrect; questions #2, #4" in caplog.text
    assert trained_ids(config_of(world, tmp_path, train, "data.wrong_demonstrations=drop")) == ["#1", "#3"]
    assert "They are left out: 2 of 4 questions remain" in caplog.text
    with pytest.raises(DataError, match="2 of 4 demonstrations"):
        trained_ids(config_of(world, tmp_path, train, "data.wrong_demonstrations=error"))
    # Where no demonstration is trained on, none is checked.
    assert (
        len(trained_ids(config_of(world, tmp_path, train, "gate={kind: rl}", "data.wrong_demonstrations=error"))) == 4
    )
    rollouts = [train, "data.wrong_demonstrations=rollouts"]
    assert trained_ids(config_of(world, tmp_path, *rollouts)) == ["#1", "#2 alone", "#3", "#4 alone"]
    assert "They are left out: RL alone trains on their questions" in caplog.text
    assert trained_ids(config_of(world, tmp_path, *rollouts, SFT)) == ["#1", "#3"]
    write(data, WRONG)
    for what in ("drop", "rollouts"):
        with pytest.raises(DataError, match="the verifier refuses every demonstration"):
            trained_ids(config_of(world, tmp_path, train, f"data.wrong_demonstrations={what}"))


def test_all_demonstrations_are_checked_unless_wrong_ones_are_kept(
    world: Path,
    tmp_path: Path,
    trained_ids: TrainedIds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(run_data, "SAMPLE", 2)
    train = f"data.train={write(tmp_path / 'd.jsonl', WRONG, WRONG, RIGHT, RIGHT)}"
    assert trained_ids(config_of(world, tmp_path, train, "data.wrong_demonstrations=drop")) == ["#3", "#4"]
    trained_ids(config_of(world, tmp_path, train))
    assert "1 of 2 checked (of 4) demonstrations" in caplog.text


def test_prompts_of_held_out_questions_need_room_too(world: Path, tmp_path: Path) -> None:
    short = write(tmp_path / "short.jsonl", RIGHT)
    longer = write(tmp_path / "longer.jsonl", RIGHT | {"prompt": "1+1+0="})
    for train, held_out in ((short, longer), (longer, short)):
        config = config_of(world, tmp_path, f"data.train={train}", f"data.eval={held_out}", "eval.every=1")
        data = load_data(config)
        (expected,) = data.renderer.encode_prompts(read_questions(config)[held_out == longer][0].questions)
        assert data.longest_prompt == len(expected)


def test_missing_demonstrations_are_an_error_dropped_or_kept_for_rl_and_counted(
    world: Path, tmp_path: Path, trained_ids: TrainedIds, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    without = {key: RIGHT[key] for key in ("prompt", "answer")}
    data = write(tmp_path / "d.jsonl", RIGHT, without, WRONG, without | {"demonstration": ""})
    train, keep = f"data.train={data}", "data.missing_demonstrations=rollouts"
    with pytest.raises(DataError, match=r"(?s)line 2: field 'demonstration' is missing.*data.missing_demonstrations"):
        trained_ids(config_of(world, tmp_path, train))
    dropped = config_of(world, tmp_path, train, "data.missing_demonstrations=drop")
    assert trained_ids(dropped) == ["#1", "#3"]
    assert f"{data}: 2 of 4 questions have no demonstration: they are left out" in caplog.text
    assert trained_ids(config_of(world, tmp_path, train, keep, SFT)) == ["#1", "#3"]
    assert trained_ids(config_of(world, tmp_path, train, keep)) == ["#1", "#2 alone", "#3", "#4 alone"]
    assert f"{data}: 2 of 4 questions have no demonstration: RL alone trains on them" in caplog.text
    wrong = [train, keep, "data.wrong_demonstrations=drop"]
    assert trained_ids(config_of(world, tmp_path, *wrong)) == ["#1", "#2 alone", "#4 alone"]
    with pytest.raises(DataError, match="every question with a demonstration is longer than the limits"):
        trained_ids(config_of(world, tmp_path, train, keep, "data.max_demonstration_tokens=1"))
    write(data, without, without)
    for what in ("drop", "rollouts"):
        wrong_name = [f"data.missing_demonstrations={what}", "data.columns.demonstration=x"]
        with pytest.raises(DataError, match=rf"No question has .*={what}\): .*column for the demonstration.* x;"):
            trained_ids(config_of(world, tmp_path, train, *wrong_name))
    write(data, *[without | {"demonstration": None}] * 2)
    with pytest.raises(DataError, match=r"(?s)No question has .*line 2: field 'demonstration' is null"):
        trained_ids(config_of(world, tmp_path, train, keep))


def test_conversations_completions_and_whole_sources_may_lack_a_demonstration(world: Path, tmp_path: Path) -> None:
    ask, reply = {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "\\boxed{2}"}
    chats = [[ask, reply], [ask], [ask, reply | {"weight": 0}], [ask, reply, ask], [ask, reply, ask, reply]]
    write(tmp_path / "chats.jsonl", *[{"messages": chat, "answer": "2"} for chat in chats])
    trl = {"prompt": [ask], "answer": "2"}
    write(tmp_path / "trl.jsonl", trl | {"completion": [reply]}, trl | {"completion": []}, trl | {"completion": None})
    write(tmp_path / "bare.jsonl", {"prompt": "1+1=", "answer": "2"})
    paths = ", ".join(f"{{path: {tmp_path}/{name}.jsonl}}" for name in ("chats", "trl", "bare"))
    config = config_of(world, tmp_path, f"data.train=[{paths}]", "data.missing_demonstrations=rollouts")
    sources, _ = read_questions(config)
    assert [[question.demonstration is not None for question in source.questions] for source in sources] == [
        [True, False, False, False, True],
        [True, False, False],
        [False],
    ]
    dropped = config_of(world, tmp_path, f"data.train=[{paths}]", "data.missing_demonstrations=drop")
    with pytest.raises(DataError, match=r"bare.jsonl: no question has a demonstration"):
        read_questions(dropped)


def test_the_question_shown_is_one_that_is_trained_on(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = write(tmp_path / "d.jsonl", WRONG, RIGHT)
    with assemble(config_of(world, tmp_path, f"data.train={data}", "data.wrong_demonstrations=drop"), None):
        pass
    assert "Prompt of question #2" in caplog.text
    assert "Prompt of question #1" not in caplog.text


def test_answers_that_nothing_reads_may_be_missing_or_broken(
    world: Path, tmp_path: Path, trained_ids: TrainedIds
) -> None:
    open_ended = {"prompt": "1+2=", "completion": "3"}
    data = write(tmp_path / "d.jsonl", open_ended, open_ended | {"answer": "\\frac{"}, open_ended | {"answer": "3"})
    train = f"data.train={data}"
    assert len(trained_ids(config_of(world, tmp_path, train, SFT))) == 3
    with pytest.raises(DataError, match="line 1: field 'answer' is missing"):
        trained_ids(config_of(world, tmp_path, train))
    held_out = f"data.eval={data}"
    assert len(load_data(config_of(world, tmp_path, train, SFT, held_out)).held_out[0].questions) == 3
    with pytest.raises(DataError, match="line 1: field 'answer' is missing"):
        load_data(config_of(world, tmp_path, train, SFT, held_out, "eval.every=2"))


@pytest.mark.parametrize(
    ("settings", "expected", "not_expected"),
    [
        (
            ["rewards=[rewards:share_of_digits]"],
            ["The gate asks the verifier", "gate.reads=share_of_digits gate.threshold=VALUE", "method=grpo"],
            "rewards lists verifier",
        ),
        (
            ["rewards=[rewards:share_of_digits, verifier]", "gate={kind: rl}"],
            ["rewards lists verifier", "leave it out"],
            "The gate",
        ),
        ([], ["The reward is the verifier's score", "list functions in rewards", "gate.reads=NAME"], "lists verifier"),
        (
            ["rewards=[rewards:share_of_digits]", "gate.reads=share_of_digits", "gate.threshold=1"],
            ["column for the demonstration", "trains on demonstrations (gate.kind=switch)", "method=grpo"],
            "verifier",
        ),
    ],
)
def test_an_error_says_why_a_column_is_needed_and_what_to_do_without(
    world: Path, tmp_path: Path, settings: list[str], expected: list[str], not_expected: str
) -> None:
    data = write(tmp_path / "d.jsonl", {"prompt": "1+1="})
    with pytest.raises(DataError) as caught:
        read_questions(config_of(world, tmp_path, f"data.train={data}", *settings))
    message = str(caught.value)
    assert [part for part in expected if part not in message] == []
    assert not_expected not in message


def test_an_error_says_why_an_evaluation_needs_answers(world: Path, tmp_path: Path) -> None:
    data, held_out = write(tmp_path / "d.jsonl", RIGHT), write(tmp_path / "h.jsonl", {"prompt": "1+1="})
    config = config_of(world, tmp_path, f"data.train={data}", f"data.eval={held_out}", "eval.every=2")
    with pytest.raises(DataError) as caught:
        read_questions(config)
    assert "h.jsonl: no record has a column for the answer" in str(caught.value)
    assert "Evaluations (eval.every=2) ask the verifier" in str(caught.value)
    assert "gate.reads=NAME gate.threshold=VALUE, or do not evaluate: eval.every=0" in str(caught.value)


def test_several_sources_are_mixed_by_their_weights(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(tmp_path / "a.jsonl", *[RIGHT] * 5)
    write(tmp_path / "b.jsonl", *[RIGHT | {"level": 1}] * 3, RIGHT | {"demonstration": "1" * 40})
    train = f"data.train=[{{path: {tmp_path}/a.jsonl, weight: 0.7}}, {{path: {tmp_path}/b.jsonl, weight: 0.3}}]"
    config = config_of(world, tmp_path, train)
    data = load_data(config)
    assert [question.id for question in data.questions] == [
        *(f"a/#{n}" for n in range(1, 6)),
        *(f"b/#{n}" for n in (1, 2, 3)),
    ]
    assert data.order(config) == MixedOrder((5, 3), (0.7, 0.3), 6, 0)
    assert f"{tmp_path}/b.jsonl: these columns are for reward functions only: level" in caplog.text
    assert "a.jsonl: these" not in caplog.text
