"""Records, and functions that write and load files of them: for the tests of questions, readers and benchmarks."""

import csv
import json

import pyarrow.parquet
import pytest

from hpt.config.sections.data import ColumnsConfig
from hpt.data.benchmarks import find_benchmark, load_benchmark
from hpt.data.questions import load_questions
from hpt.support.errors import DataError

GOOD = {"prompt": "1+1?", "answer": "2", "demonstration": "1+1 = 2"}
# One record in the layout of OpenR1-Math-46k-8192.
OPENR1 = {
    "data_source": "openr1",
    "prompt": [{"content": "Think first.", "role": "system"}, {"content": "What is $2+2$?", "role": "user"}],
    "target": [{"content": "<think>\n2+2=4\n</think>\n\\boxed{4}", "role": "assistant"}],
    "ability": "math",
    "reward_model": {"ground_truth": "4", "style": "rule"},
    "extra_info": {"index": -1, "split": "default"},
}
# Made up, in the layout of the public file.
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


def load(source, demonstrations="optional", need_answer=True, **columns):
    return load_questions(source, ColumnsConfig(**columns), demonstrations=demonstrations, need_answer=need_answer)


def error_of(source, demonstrations="optional", need_answer=True, **columns):
    with pytest.raises(DataError) as caught:
        load(source, demonstrations, need_answer, **columns)
    return str(caught.value)


def load_local(folder, name, records, *, seed=0, file="test.json", **columns):
    (folder / name).mkdir(exist_ok=True)
    text = json.dumps(records) if file.endswith(".json") else "".join(json.dumps(record) + "\n" for record in records)
    (folder / name / file).write_text(text)
    return load_benchmark(find_benchmark(name), folder, ColumnsConfig(**columns), seed=seed)[1]


def write_csv(path, records):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


def write_parquet(path, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
