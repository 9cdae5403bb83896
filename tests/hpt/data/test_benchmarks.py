"""Benchmarks by name: local files first, the public layouts, and what is wrong with a file."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from hpt.config.schema import ColumnsConfig
from hpt.data.benchmarks import (
    BENCHMARKS,
    DATA_DIR,
    INSTRUCTION,
    find_benchmark,
    load_benchmark,
    load_file,
    unknown_benchmark,
)
from hpt.data.questions import load_questions
from hpt.data.readers import FILE_KINDS
from hpt.support.errors import DataError, HptError
from hpt.verify.choice import chosen_letter

PUBLISHED = Path(__file__).parents[3].parent / "shared" / "eval"
SIZES = {"AIME24": 30, "AIME25": 30, "AMC": 40, "MATH-500": 500, "Minerva": 272, "OlympiadBench": 674}

# Made up, in the layouts of the public files.
GPQA = {
    "Question": "Which of these made-up particles is heaviest?",
    "Correct Answer": "the fourth ",
    "Incorrect Answer 1": "the first",
    "Incorrect Answer 2": "the second",
    "Incorrect Answer 3": "the third\n",
    "Record ID": "rec1",
    "High-level domain": "Physics",
    "Explanation": "It is.",
}
ARC = {
    "id": "Made_Up_1",
    "question": "What melts in the sun?",
    "choices": {"text": ["stone", "ice", "iron"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
ARC_OF_ITS_AUTHORS = {
    "id": "Made_Up_2",
    "question": {
        "stem": "What melts in the sun?",
        "choices": [{"text": "stone", "label": "1"}, {"text": "iron", "label": "2"}, {"text": "ice", "label": "3"}],
    },
    "answerKey": "3",
}
OLYMPIAD = {"id": 1606, "question": "Find $x$ and $y$.", "final_answer": ["$x=1$", "$y=2$"], "subfield": "Algebra"}


def load(folder, name, records, *, seed=0, file="test.json", **columns):
    (folder / name).mkdir(exist_ok=True)
    text = json.dumps(records) if file.endswith(".json") else "".join(json.dumps(record) + "\n" for record in records)
    (folder / name / file).write_text(text)
    return load_benchmark(find_benchmark(name), folder, ColumnsConfig(**columns), seed=seed)[1]


def write_csv(path, records):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


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
    assert questions == load_questions(source, ColumnsConfig(), need_demonstration=False)


@pytest.mark.parametrize("kind", FILE_KINDS)
@pytest.mark.parametrize("form", ["aime-2024/test{}", "AIME24/test-00000-of-00001{}", "AIME24/aime2024{}", "AIME24{}"])
def test_places_of_a_local_file(tmp_path, form, kind):
    path = tmp_path / form.format(kind)
    path.parent.mkdir(exist_ok=True)
    records = [{"problem": "1+1?", "solution": r"\boxed{2}"}]
    if kind == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    elif kind == ".csv":
        write_csv(path, records)
    else:
        path.write_text(json.dumps(records if kind == ".json" else records[0]))
    (tmp_path / "AIME25.json").write_text("not this one")
    (tmp_path / "notes.txt").write_text("nor this")
    source, (question,) = load_benchmark(find_benchmark("AIME24"), tmp_path, ColumnsConfig(), seed=0)
    assert source == str(path)
    assert (question.prompt, question.answer) == ("1+1?", r"\boxed{2}")


def test_without_a_file_and_a_library_the_places_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delenv(DATA_DIR, raising=False)
    benchmark = find_benchmark("GPQA-Diamond")
    with pytest.raises(
        HptError, match=r"GPQA-Diamond, GPQA as NAME/test, NAME/NAME or .* nowhere: name .* --data-dir or \$HPT_DATA"
    ):
        load_benchmark(benchmark, None, ColumnsConfig(), seed=0)
    with pytest.raises(HptError) as error:
        load_benchmark(benchmark, tmp_path, ColumnsConfig(), seed=0)
    assert f"in {tmp_path}." in str(error.value)
    assert "pip install 'hpt[eval]'" in str(error.value)
    with pytest.raises(HptError, match=r"nothing, the folder of benchmark files, cannot be read: No such file"):
        load_benchmark(benchmark, tmp_path / "nothing", ColumnsConfig(), seed=0)


def test_the_hub_is_asked_by_name_config_and_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config=None, split=None):
        asked.append((name, config, split))
        return [GPQA]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source, (question,) = load_benchmark(find_benchmark("gpqa"), tmp_path, ColumnsConfig(), seed=0)
    assert asked == [("Idavidrein/gpqa", "gpqa_diamond", "train")]
    assert source == "Idavidrein/gpqa:gpqa_diamond@train"
    assert question.id == "rec1"


# ---- layouts


def test_gpqa(tmp_path):
    (question,) = load(tmp_path, "GPQA-Diamond", [GPQA])
    lines = question.prompt.split("\n")
    assert lines[0] == GPQA["Question"]
    assert lines[-1] == INSTRUCTION
    choices = dict(line.split(". ") for line in lines[2:6])
    assert list(choices) == ["A", "B", "C", "D"]
    assert sorted(choices.values()) == ["the first", "the fourth", "the second", "the third"]
    assert choices[question.answer] == "the fourth"
    assert (question.id, question.grade) == ("rec1", "Physics")


def test_gpqas_own_csv_file(tmp_path):
    """As its archive has it: quoted fields with commas and line breaks, many more columns, some of them empty."""
    records = [
        {"Pre-Revision Question": "", **GPQA, "Record ID": f"rec{i}", "Explanation": 'It is, "by far".\nYes.'}
        | {"Incorrect Answer 1": "1,5\nof it", "Writer's Difficulty Estimate": ""}
        for i in range(3)
    ]
    write_csv(tmp_path / "gpqa_diamond.csv", records)
    source, questions = load_benchmark(find_benchmark("GPQA-Diamond"), tmp_path, ColumnsConfig(), seed=3)
    assert source.endswith("gpqa_diamond.csv")
    (tmp_path / "json").mkdir()
    assert questions == load(tmp_path / "json", "GPQA", records, seed=3)
    assert [question.id for question in questions] == ["rec0", "rec1", "rec2"]
    del records[1]["Incorrect Answer 3"]
    write_csv(tmp_path / "gpqa_diamond.csv", records)
    with pytest.raises(DataError, match=r"gpqa_diamond\.csv, record 2: field 'Incorrect Answer 3' is ''; allowed"):
        load_benchmark(find_benchmark("GPQA-Diamond"), tmp_path, ColumnsConfig(), seed=3)


def test_arcs_own_files(tmp_path):
    (tmp_path / "ARC-Challenge").mkdir()
    path = tmp_path / "ARC-Challenge" / "ARC-Challenge-Test.jsonl"
    path.write_text(json.dumps(ARC_OF_ITS_AUTHORS) + "\n")
    (path.parent / "ARC-Challenge-Dev.jsonl").write_text("not this one")
    source, (question,) = load_benchmark(find_benchmark("ARC-c"), tmp_path, ColumnsConfig(), seed=0)
    assert (source, question.answer) == (str(path), "C")


@pytest.mark.parametrize(
    ("name", "record", "scoring"),
    [("GPQA", GPQA, "choice"), ("ARC-c", ARC, "choice"), ("OlympiadBench", OLYMPIAD, "math")],
)
def test_a_benchmarks_layout_is_known_by_its_fields_in_any_file(tmp_path, name, record, scoring):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(record) + "\n")
    assert load_file(str(path), ColumnsConfig(), seed=3) == (load(tmp_path, name, [record], seed=3), scoring)
    # What says its answer is read as it says.
    path.write_text(json.dumps(record | {"question": "Which?", "answer": "A"}) + "\n")
    (question,), scoring = load_file(str(path), ColumnsConfig(), seed=3)
    assert (question.prompt, question.answer, scoring) == ("Which?", "A", None)


def test_gpqas_choices_are_shuffled_by_the_seed_alone(tmp_path):
    records = [GPQA | {"Question": f"Question {i}?", "Record ID": f"rec{i}"} for i in range(200)]
    one = load(tmp_path, "GPQA", records)
    assert one == load(tmp_path, "GPQA", records)
    assert one[7:8] == load(tmp_path, "GPQA", records[7:8])
    other = load(tmp_path, "GPQA", records, seed=1)
    # 50 of 200 by chance, with a standard deviation of 6.1.
    assert 25 <= sum(a.answer == b.answer for a, b in zip(one, other, strict=True)) <= 75
    for letter in "ABCD":
        assert 25 <= sum(question.answer == letter for question in one) <= 75


@pytest.mark.parametrize("record", [ARC, ARC_OF_ITS_AUTHORS], ids=["hub", "authors"])
def test_arc(tmp_path, record):
    (question,) = load(tmp_path, "ARC-c", [record], file="test.jsonl")
    assert question.prompt.startswith("What melts in the sun?\n\nA. stone\nB. ")
    assert re.search(r"^(.)\. ice$", question.prompt, re.MULTILINE)[1] == question.answer
    assert question.id == record["id"]


def test_published_multiple_choice(tmp_path):
    record = {"prompt": "Which?\nA. this\nB. that", "answer": "B"}
    (question,) = load(tmp_path, "ARC-c", [record])
    assert (question.prompt, question.answer, question.id) == (record["prompt"], "B", "#1")
    chat = {"prompt": [{"role": "user", "content": "Which?"}], "reward_model": {"ground_truth": "A"}}
    (question,) = load(tmp_path, "GPQA-Diamond", [chat])
    assert (question.prompt, question.answer) == (({"role": "user", "content": "Which?"},), "A")


def test_the_wording_of_the_instruction_is_not_an_answer():
    assert chosen_letter(INSTRUCTION) is None


def test_olympiad_bench(tmp_path):
    (question,) = load(tmp_path, "OlympiadBench", [OLYMPIAD])
    assert (question.id, question.prompt, question.answer) == ("1606", "Find $x$ and $y$.", "$x=1$, $y=2$")
    assert question.grade == "Algebra"


def test_math_500_of_the_hub(tmp_path):
    record = {"problem": "1+1?", "solution": "Two.", "answer": "2", "level": 3, "unique_id": "test/1.json"}
    (question,) = load(tmp_path, "MATH-500", [record])
    assert (question.id, question.answer, question.grade) == ("test/1.json", "2", "3")


# ---- wrong layouts


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("GPQA", {k: v for k, v in GPQA.items() if k != "Incorrect Answer 2"}, "field 'Incorrect Answer 2' is missing"),
        ("GPQA", {k: v for k, v in GPQA.items() if k != "Correct Answer"}, "field 'Correct Answer' is missing"),
        ("GPQA", GPQA | {"Question": " "}, "field 'Question' is ' '; allowed: a string with text in it"),
        ("ARC-c", {k: v for k, v in ARC.items() if k != "answerKey"}, "field 'answerKey' is missing"),
        ("ARC-c", {k: v for k, v in ARC.items() if k != "choices"}, "field 'choices' is missing"),
        ("ARC-c", {k: v for k, v in ARC.items() if k != "question"}, "field 'question' is missing"),
        ("ARC-c", ARC | {"answerKey": "E"}, "field 'answerKey' is 'E'; allowed: one of its labels, A, B, C"),
        ("ARC-c", ARC | {"choices": {"text": ["a"], "label": ["A"]}}, "allowed: two lists of one length, at least 2"),
        ("ARC-c", ARC | {"choices": {"text": [None, "b", "c"], "label": ["A", "B", "C"]}}, "'choices.text' is missing"),
        ("ARC-c", ARC | {"choices": "A or B"}, "field 'choices' is 'A or B'; allowed: an object with text and label"),
        (
            "OlympiadBench",
            OLYMPIAD | {"final_answer": []},
            "field 'final_answer' is []; allowed: a list of at least one",
        ),
        ("OlympiadBench", {"final_answer": ["1"]}, "field 'question' is missing"),
    ],
)
def test_a_wrong_record_is_named_by_field_and_number(tmp_path, name, record, message):
    good = {"GPQA": GPQA, "ARC-c": ARC, "OlympiadBench": OLYMPIAD}[name]
    id = "Record ID" if name == "GPQA" else "id"
    with pytest.raises(DataError) as error:
        load(tmp_path, name, [good, record | {id: "other"}])
    assert message in str(error.value)
    assert "test.json, record 2: " in str(error.value)
    assert "The layout of" in str(error.value)


@pytest.mark.parametrize(
    ("record", "field"), [({"prompt": "1+1?", "gold": "2"}, "answer"), ({"ask": "1+1?", "answer": "2"}, "prompt")]
)
def test_a_file_without_a_known_field_names_it_and_what_was_looked_for(tmp_path, record, field):
    with pytest.raises(DataError) as error:
        load(tmp_path, "GPQA-Diamond", [record])
    message = str(error.value)
    assert f"no layout of GPQA-Diamond: no record has a field for the {field}" in message
    assert f"Looked for {'answer, reward_model' if field == 'answer' else 'prompt, problem, question'}" in message
    assert "Incorrect Answer 3" in message
    assert f"The records have {', '.join(sorted(record))}" in message
    named = next(key for key in record if key not in ("prompt", "answer"))
    assert len(load(tmp_path, "GPQA-Diamond", [record], **{field: named})) == 1


def test_ids_are_unique(tmp_path):
    with pytest.raises(DataError, match=r"record 2: its id is 'rec1', that of record 1 too"):
        load(tmp_path, "GPQA", [GPQA, GPQA])


def test_an_empty_file(tmp_path):
    with pytest.raises(DataError, match="holds no questions"):
        load(tmp_path, "GPQA", [])
