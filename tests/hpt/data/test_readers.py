"""Every kind of file and dataset is read, and a bad one is named with the place of what is wrong."""

import json
import subprocess
import sys

import datasets
from question_files import GOOD, OPENR1, error_of, load, write_parquet

from hpt.data.questions import Question


def test_json_list_with_ids_and_grades(tmp_path):
    path = tmp_path / "test.json"
    records = [{"prompt": "p", "answer": "1", "id": "a/807.json", "grade": 3}, {"prompt": "q", "answer": "2"}]
    path.write_text(json.dumps(records))
    assert load(str(path)) == [Question("a/807.json", "p", "1", grade="3"), Question("#2", "q", "2")]


def test_text_is_kept_verbatim(jsonl):
    record = {"prompt": " \tWas ist 3×4? \n", "answer": " 12 ", "demonstration": "🧮 3×4\u2028= 12\n\n"}
    assert load(jsonl(json.dumps(record, ensure_ascii=False).encode())) == [Question("#1", *record.values())]


def test_blank_lines_and_byte_order_mark_are_skipped_but_counted(jsonl):
    assert [q.id for q in load(jsonl(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", GOOD))] == ["#1", "#3"]


def test_parquet_and_dataset_folder(tmp_path):
    dataset = datasets.Dataset.from_list([OPENR1, OPENR1 | {"target": None}])
    dataset.to_parquet(tmp_path / "train.parquet")
    questions = load(str(tmp_path / "train.parquet"))
    assert [q.demonstration is None for q in questions] == [False, True]
    assert questions[0].prompt[0] == {"role": "system", "content": "Think first."}

    dataset.save_to_disk(tmp_path / "one")
    assert load(str(tmp_path / "one")) == questions
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "two")
    assert load(f"{tmp_path / 'two'}@test") == questions[:1]
    assert "name one of its splits, train, test" in error_of(str(tmp_path / "two"))
    message = error_of(str(tmp_path / "train.parquet"), demonstrations="required")
    assert "train.parquet, record 2: field 'target' is null" in message


def test_reading_leaves_the_users_cache_alone_and_sees_changes(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    (tmp_path / "folder").mkdir()
    for number in (1, 2):
        for path in (tmp_path / "a[1] *.parquet", tmp_path / "folder" / "train.parquet"):
            write_parquet(path, [{"prompt": "p", "answer": number}])
        for source in (tmp_path / "a[1] *.parquet", tmp_path / "folder"):
            assert load(str(source)) == [Question("#1", "p", str(number))]
    assert not cache.exists()


def test_parquet_of_mixed_types_is_read_as_it_was_written(tmp_path):
    """`datasets` stores such a column as JSON, which Parquet alone would give as text with quotes."""
    records = [{"prompt": "p", "reward_model": {"ground_truth": value}} for value in (4, "x")]
    datasets.Dataset.from_list(records, on_mixed_types="use_json").to_parquet(tmp_path / "train.parquet")
    assert [question.answer for question in load(str(tmp_path / "train.parquet"))] == ["4", "x"]


def test_a_parquet_file_without_rows(tmp_path):
    write_parquet(tmp_path / "train.parquet", [])
    assert "train.parquet holds no questions: it is empty" in error_of(str(tmp_path / "train.parquet"))


def test_csv_values_are_kept_as_text(tmp_path):
    (tmp_path / "train.csv").write_text("prompt,answer\n1+1?,007\n2+2?,NA\n3+3?,1.0\n")
    assert [question.answer for question in load(str(tmp_path / "train.csv"))] == ["007", "NA", "1.0"]


def test_datasets_is_imported_only_where_it_is_needed(tmp_path):
    (tmp_path / "train.csv").write_text("prompt,answer\n1+1?,2\n")
    code = (
        "import sys; from hpt.config.sections.data import ColumnsConfig; "
        "from hpt.data.questions import load_questions; "
        "load_questions(sys.argv[1], ColumnsConfig(), demonstrations='optional'); "
        "assert not {'datasets', 'pyarrow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "train.csv")], check=True)


def test_missing_and_unreadable_files(tmp_path):
    assert "nowhere.jsonl: no such file" in error_of(str(tmp_path / "nowhere.jsonl"))
    assert "no such file or folder" in error_of(str(tmp_path / "nowhere"))
    for name, content, expected in [
        ("a.jsonl", b"\n \n", "holds no questions: it is empty"),
        ("a.json", b"", "holds no questions: it is empty"),
        ("b.json", b"[]", "holds no questions: it is empty"),
        ("c.json", b'{"data": []}', "is one dict"),
        ("d.json", b'[\n{"prompt": }]', "broken JSON at line 2, column 12"),
        ("e.json", b"[" * 200_000, "JSON that cannot be read"),
        (
            "e.jsonl",
            b'{"prompt": "a", "answer": "b", "prompt": "c"}',
            "line 1: is JSON that cannot be read: an object has the key",
        ),
        ("f.tsv", b"prompt\tanswer", "a data file ends in .jsonl, .json, .csv, .parquet, not in '.tsv'"),
        ("f.csv", b"prompt,answer\n1+1?,2\n2+2?\n", "f.csv, record 2: has fewer fields than the first row"),
        ("f.csv", b"prompt,answer\n1+1?,2,3\n", "f.csv, record 1: has more fields than the first row"),
        ("f.csv", b"prompt,answer\n\xff,2\n", "f.csv is not UTF-8 text: invalid start byte at byte 15"),
        ("f.csv", b'prompt,answer\n"1+1?,2\n', "f.csv cannot be read as CSV: unexpected end of data"),
        ("f.csv", b"prompt,answer,prompt\n1+1?,2,2+2?\n", "f.csv: its first row names the column 'prompt' 2 times"),
        ("f.csv", b"", "f.csv holds no questions"),
        ("g.parquet", b"PAR1 and then nothing", "g.parquet cannot be read as parquet: "),
    ]:
        (tmp_path / name).write_bytes(content)
        message = error_of(str(tmp_path / name))
        assert name in message
        assert expected in message
