"""Benchmarks by name: local files first, the hub, and how they are scored."""

import json
from pathlib import Path

import datasets
import pytest
from question_files import GPQA, write_csv, write_parquet

from hpt.config.sections.data import ColumnsConfig
from hpt.data.benchmarks import (
    BENCHMARKS,
    DATA_DIR,
    find_benchmark,
    load_benchmark,
    unknown_benchmark,
)
from hpt.data.questions import load_questions
from hpt.data.readers import FILE_KINDS
from hpt.support.errors import HptError

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "eval"
SIZES = {"AIME24": 30, "AIME25": 30, "AMC": 40, "MATH-500": 500, "Minerva": 272, "OlympiadBench": 674}


# ---- names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("AIME24", "AIME24"),
        ("aime_2024", "AIME24"),
        ("aime25", "AIME25"),
        ("AMC23", "AMC"),
        ("amc", "AMC"),
        ("math500", "MATH-500"),
        ("minerva", "Minerva"),
        ("Olympiad-Bench", "OlympiadBench"),
        ("gpqa", "GPQA-Diamond"),
        ("arc-challenge", "ARC-c"),
    ],
)
def test_names_are_known_in_any_spelling(given, name):
    assert find_benchmark(given).name == name


def test_an_unknown_name_gets_its_nearest_neighbours_and_the_list():
    assert find_benchmark("MATH-5000") is None
    message = str(unknown_benchmark("MATH-5000"))
    assert "Did you mean MATH-500?" in message
    assert all(benchmark.name in message for benchmark in BENCHMARKS)
    assert "Did you mean" not in str(unknown_benchmark("qqqq"))


def test_the_literatures_protocol():
    assert {benchmark.name for benchmark in BENCHMARKS if benchmark.n == 32} == {"AIME24", "AIME25", "AMC"}
    assert {benchmark.n for benchmark in BENCHMARKS} == {1, 32}
    assert {each.name for each in BENCHMARKS if each.verifier == "choice"} == {"GPQA-Diamond", "ARC-c"}


# ---- local files


@pytest.mark.parametrize("name", SIZES)
def test_the_published_files_are_found_and_whole(name, monkeypatch):
    if not PUBLISHED.is_dir():
        pytest.skip("the published test files are not beside the repository")
    monkeypatch.setenv(DATA_DIR, str(PUBLISHED))
    source, questions = load_benchmark(find_benchmark(name), None, ColumnsConfig(), seed=0)
    assert len(questions) == SIZES[name]
    assert questions == load_questions(source, ColumnsConfig(), demonstrations="optional")


@pytest.mark.parametrize("kind", FILE_KINDS)
@pytest.mark.parametrize("form", ["aime-2024/test{}", "AIME24/test-00000-of-00001{}", "AIME24/aime2024{}", "AIME24{}"])
def test_places_of_a_local_file(tmp_path, form, kind):
    path = tmp_path / form.format(kind)
    path.parent.mkdir(exist_ok=True)
    records = [{"problem": "1+1?", "solution": r"\boxed{2}"}]
    if kind == ".parquet":
        write_parquet(path, records)
    elif kind == ".csv":
        write_csv(path, records)
    else:
        path.write_text(json.dumps(records if kind == ".json" else records[0]))
    (tmp_path / "AIME25.json").write_text("not this one")
    (tmp_path / "notes.txt").write_text("nor this")
    source, (question,) = load_benchmark(find_benchmark("AIME24"), tmp_path, ColumnsConfig(), seed=0)
    assert source == str(path)
    assert (question.prompt, question.answer) == ("1+1?", r"\boxed{2}")


def test_without_a_file_and_a_hub_the_places_are_named(tmp_path, monkeypatch):
    def load_dataset(name, config=None, split=None):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv(DATA_DIR, raising=False)
    benchmark = find_benchmark("GPQA-Diamond")
    with pytest.raises(
        HptError,
        match=r"GPQA-Diamond, GPQA as NAME/test, NAME/NAME or .* in no folder: name one by --data-dir or \$HPT_DATA",
    ):
        load_benchmark(benchmark, None, ColumnsConfig(), seed=0)
    with pytest.raises(HptError) as error:
        load_benchmark(benchmark, tmp_path, ColumnsConfig(), seed=0)
    assert f"in {tmp_path}." in str(error.value)
    assert "Hub: Idavidrein/gpqa:gpqa_diamond@train: the datasets library cannot load it: Conn" in str(error.value)
    with pytest.raises(HptError, match=r"nothing, the folder of benchmark files, cannot be read: No such file"):
        load_benchmark(benchmark, tmp_path / "nothing", ColumnsConfig(), seed=0)


def test_the_hub_is_asked_by_name_config_and_split(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([GPQA])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source, (question,) = load_benchmark(find_benchmark("gpqa"), tmp_path, ColumnsConfig(), seed=0)
    assert asked == [("Idavidrein/gpqa", "gpqa_diamond", "train")]
    assert source == "Idavidrein/gpqa:gpqa_diamond@train"
    assert question.id == "rec1"
