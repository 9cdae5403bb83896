"""The layouts of published benchmarks are recognised, and what is wrong with a record is named."""

import json
import re

import pytest
from question_files import GPQA, load_local, write_csv

from hpt.config.sections.data import ColumnsConfig
from hpt.data.benchmarks import find_benchmark, load_benchmark, load_file
from hpt.data.layouts import INSTRUCTION
from hpt.support.errors import DataError
from hpt.verify.choice import chosen_letter

# Made up, in the layouts of the public files.
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


def test_gpqa(tmp_path):
    (question,) = load_local(tmp_path, "GPQA-Diamond", [GPQA])
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
    assert questions == load_local(tmp_path / "json", "GPQA", records, seed=3)
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
    assert load_file(str(path), ColumnsConfig(), seed=3) == (load_local(tmp_path, name, [record], seed=3), scoring)
    # What says its answer is read as it says.
    path.write_text(json.dumps(record | {"question": "Which?", "answer": "A"}) + "\n")
    (question,), scoring = load_file(str(path), ColumnsConfig(), seed=3)
    assert (question.prompt, question.answer, scoring) == ("Which?", "A", None)


def test_gpqas_choices_are_shuffled_by_the_seed_only(tmp_path):
    records = [GPQA | {"Question": f"Question {i}?", "Record ID": f"rec{i}"} for i in range(200)]
    one = load_local(tmp_path, "GPQA", records)
    assert one == load_local(tmp_path, "GPQA", records)
    assert one[7:8] == load_local(tmp_path, "GPQA", records[7:8])
    other = load_local(tmp_path, "GPQA", records, seed=1)
    # 50 of 200 by chance, with a standard deviation of 6.1.
    assert 25 <= sum(a.answer == b.answer for a, b in zip(one, other, strict=True)) <= 75
    for letter in "ABCD":
        assert 25 <= sum(question.answer == letter for question in one) <= 75


@pytest.mark.parametrize("record", [ARC, ARC_OF_ITS_AUTHORS], ids=["hub", "authors"])
def test_arc(tmp_path, record):
    (question,) = load_local(tmp_path, "ARC-c", [record], file="test.jsonl")
    assert question.prompt.startswith("What melts in the sun?\n\nA. stone\nB. ")
    assert re.search(r"^(.)\. ice$", question.prompt, re.MULTILINE)[1] == question.answer
    assert question.id == record["id"]


def test_published_multiple_choice(tmp_path):
    record = {"prompt": "Which?\nA. this\nB. that", "answer": "B"}
    (question,) = load_local(tmp_path, "ARC-c", [record])
    assert (question.prompt, question.answer, question.id) == (record["prompt"], "B", "#1")
    chat = {"prompt": [{"role": "user", "content": "Which?"}], "reward_model": {"ground_truth": "A"}}
    (question,) = load_local(tmp_path, "GPQA-Diamond", [chat])
    assert (question.prompt, question.answer) == (({"role": "user", "content": "Which?"},), "A")


def test_the_wording_of_the_instruction_is_not_an_answer():
    assert chosen_letter(INSTRUCTION) is None


def test_olympiad_bench(tmp_path):
    (question,) = load_local(tmp_path, "OlympiadBench", [OLYMPIAD])
    assert (question.id, question.prompt, question.answer) == ("1606", "Find $x$ and $y$.", "$x=1$, $y=2$")
    assert question.grade == "Algebra"


def test_math_500_of_the_hub(tmp_path):
    record = {"problem": "1+1?", "solution": "Two.", "answer": "2", "level": 3, "unique_id": "test/1.json"}
    (question,) = load_local(tmp_path, "MATH-500", [record])
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
        load_local(tmp_path, name, [good, record | {id: "other"}])
    assert message in str(error.value)
    assert "test.json, record 2: " in str(error.value)
    assert "The layout of" in str(error.value)


@pytest.mark.parametrize(
    ("record", "field"), [({"prompt": "1+1?", "gold": "2"}, "answer"), ({"ask": "1+1?", "answer": "2"}, "prompt")]
)
def test_a_file_without_a_known_field_names_it_and_what_was_looked_for(tmp_path, record, field):
    with pytest.raises(DataError) as error:
        load_local(tmp_path, "GPQA-Diamond", [record])
    message = str(error.value)
    assert f"no layout of GPQA-Diamond: no record has a field for the {field}" in message
    assert f"Looked for {'answer, reward_model' if field == 'answer' else 'prompt, problem, question'}" in message
    assert "Incorrect Answer 3" in message
    assert f"The records have {', '.join(sorted(record))}" in message
    named = next(key for key in record if key not in ("prompt", "answer"))
    assert len(load_local(tmp_path, "GPQA-Diamond", [record], **{field: named})) == 1


def test_ids_are_unique(tmp_path):
    with pytest.raises(DataError, match=r"record 2: its id is 'rec1', that of record 1 too"):
        load_local(tmp_path, "GPQA", [GPQA, GPQA])


def test_an_empty_file(tmp_path):
    with pytest.raises(DataError, match="holds no questions"):
        load_local(tmp_path, "GPQA", [])
