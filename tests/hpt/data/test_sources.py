"""Sources by name or mapping, alone or mixed, and records given as Python objects."""

import datetime
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from question_files import GOOD

from hpt.config.recipe import build_config
from hpt.config.sections.data import ColumnsConfig, SourceConfig
from hpt.data.questions import load_questions
from hpt.data.records import write_records
from hpt.data.sources import load_sources
from hpt.support.errors import ConfigError, DataError


def data(**settings):
    recipe = {"output": "o", "steps": 1, "model": {"path": "m"}, "data": settings}
    return build_config(recipe, source="recipe").data


def load_all(sources, columns=None):
    return load_sources(sources, columns or ColumnsConfig(), demonstrations="optional", need_answer=True)


def test_one_source_has_three_forms():
    by_name = data(train="org/name:main@train").train_sources
    assert [source.name for source in by_name] == ["org/name:main@train"]
    mapping = {"path": "org/name", "config": "main", "split": "train"}
    for train in (mapping, [mapping]):
        (source,) = data(train=train).train_sources
        assert source.name == "org/name:main@train"
    assert data(train={"path": "a.jsonl"}).train_sources[0].name == "a.jsonl"
    assert data(train="t").eval_sources == []


def test_the_written_config_reads_back_as_itself():
    settings = data(train=[{"path": "a", "weight": 0.7}, {"path": "b", "columns": {"prompt": "q"}}], eval={"path": "c"})
    assert data(**settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train": []}, "data.train = []: should have at least one source"),
        ({"train": 3}, "data.train = 3: should be a name, or a list"),
        ({"train": ["a.jsonl"]}, "data.train.0 = 'a.jsonl': should be a mapping, such as"),
        ({"train": {"weight": 1}}, "data.train.0.path: is required and missing"),
        (
            {"train": [{"path": "a", "wieght": 1}]},
            "data.train.0.wieght: there is no such setting; did you mean 'weight'?",
        ),
        ({"train": [{"path": "a", "weight": 0}]}, "data.train.0.weight = 0: input should be greater than 0"),
        (
            {"train": [{"path": "a", "columns": {"promt": "q"}}]},
            "data.train.0.columns.promt: there is no such setting; did you mean 'prompt'?",
        ),
        ({"train": {"path": "a.csv", "split": "train"}}, "config and split belong to a dataset; a.csv is a file"),
        ({"train": "t", "eval": [{"path": "a", "weight": 2}]}, "data.eval has a weight of 2.0"),
        ({"train": "t", "loss_on": "every"}, "data.loss_on = 'every': input should be 'last' or 'all'"),
        ({"train": "t", "wrong_demonstrations": "fix"}, "data.wrong_demonstrations = 'fix': input should be 'keep',"),
        ({"train": "t", "columns": {"messages": "m", "prompt": "p"}}, "name either messages or those two"),
    ],
)
def test_mistakes_are_named(settings, expected):
    with pytest.raises(ConfigError) as caught:
        data(**settings)
    assert expected in str(caught.value)


def test_all_turns_go_with_a_chat():
    recipe = {"output": "o", "steps": 1, "model": {"path": "m"}, "prompt": {"style": "plain"}}
    with pytest.raises(ConfigError, match=r'data\.loss_on "all" trains on the turns of a chat'):
        build_config(recipe | {"data": {"train": "t", "loss_on": "all"}}, source="recipe")


def test_sources_keep_their_columns_and_ids_differ(tmp_path: Path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    write_records([GOOD | {"id": "a"}, GOOD], tmp_path / "x" / "train.jsonl")
    write_records([{"q": "2+2?", "answer": 4, "level": 1}], tmp_path / "y" / "train.jsonl")
    write_records([GOOD], tmp_path / "z.jsonl")
    configs = [
        SourceConfig(path=str(tmp_path / "x" / "train.jsonl"), weight=0.7),
        SourceConfig(path=str(tmp_path / "y" / "train.jsonl"), columns=ColumnsConfig(prompt="q")),
        SourceConfig(path=str(tmp_path / "z.jsonl")),
    ]
    first, second, third = load_all(configs)
    assert [question.id for question in first.questions] == ["train-1/a", "train-1/#2"]
    assert [question.id for question in second.questions + third.questions] == ["train-2/#1", "z-3/#1"]
    assert (first.weight, second.weight) == (0.7, 1.0)
    assert (first.unread, second.unread) == ([], ["level"])
    assert [source.questions[0].id for source in load_all(configs[1:])] == ["train/#1", "z/#1"]
    (alone,) = load_all(configs[:1])
    assert [question.id for question in alone.questions] == ["a", "#2"]


def test_ids_differ_whatever_the_sources_are_called(tmp_path: Path):
    paths = [tmp_path / name for name in ("train.jsonl", "x/train.jsonl", "train-2.jsonl")]
    for path in paths:
        write_records([GOOD], path)
    loaded = load_all([SourceConfig(path=str(path)) for path in paths])
    assert [source.questions[0].id for source in loaded] == ["train-1/#1", "train-2/#1", "train-2-3/#1"]


# ---- records


def test_lists_and_datasets_are_written_as_they_are(tmp_path: Path):
    records = [GOOD | {"meta": {"a": [1, None]}}, GOOD | {"meta": {"a": []}}]
    for given in (records, datasets.Dataset.from_list(records)):
        write_records(given, tmp_path / "new" / "data.jsonl")
        lines = (tmp_path / "new" / "data.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
    assert len(load_questions(str(tmp_path / "new" / "data.jsonl"), ColumnsConfig(), demonstrations="required")) == 2
    write_records([{"prompt": "p", "answer": np.float64(2.5), "scores": np.arange(2)}], tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"prompt": "p", "answer": 2.5, "scores": [0, 1]}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (
            [GOOD, GOOD | {"image": b"PNG"}],
            "record 2 of the data: column 'image' holds b'PNG' (bytes), which JSON cannot",
        ),
        ([GOOD | {"day": datetime.date(2026, 1, 1)}], "column 'day' holds datetime.date(2026, 1, 1) (date)"),
        ([GOOD, "x"], "record 2 of the data is 'x'; allowed: a dict"),
        ([], "the data holds no records"),
        ("train.jsonl", "must be a list of dicts or a datasets.Dataset, not a text"),
        ({"train": [], "test": []}, "must be a list of dicts or a datasets.Dataset, one of train, test"),
    ],
)
def test_what_json_cannot_hold_is_named(tmp_path: Path, records, expected):
    with pytest.raises(DataError) as caught:
        write_records(records, tmp_path / "data.jsonl")
    assert expected in str(caught.value)
    assert not (tmp_path / "data.jsonl").exists()
