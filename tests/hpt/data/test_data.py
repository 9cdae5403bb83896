"""Questions are read exactly as they stand, and every kind of bad input is named once, with its place."""

import builtins
import itertools
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpt.config.schema import ColumnsConfig
from hpt.data.questions import Question, QuestionOrder, load_questions
from hpt.support.errors import DataError, HptError

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


@pytest.fixture
def jsonl(tmp_path):
    def write(*records, name="train.jsonl"):
        path = tmp_path / name
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return str(path)

    return write


def load(source, need_demonstration=False, **columns):
    return load_questions(source, ColumnsConfig(**columns), need_demonstration=need_demonstration)


def error_of(source, need_demonstration=False, **columns):
    with pytest.raises(DataError) as caught:
        load(source, need_demonstration, **columns)
    return str(caught.value)


# ---- layouts


def test_openr1_layout_needs_no_mapping(jsonl):
    second = OPENR1 | {"reward_model": {"ground_truth": "5", "style": "rule"}}
    first, other = load(jsonl(OPENR1, second), need_demonstration=True)
    assert first.prompt == (
        {"role": "system", "content": "Think first."},
        {"role": "user", "content": "What is $2+2$?"},
    )
    assert (first.answer, first.demonstration) == ("4", "<think>\n2+2=4\n</think>\n\\boxed{4}")
    assert (first.id, other.id, other.answer) == ("#1", "#2", "5")  # extra_info.index is -1 throughout: no id


@pytest.mark.parametrize(
    ("record", "prompt", "answer", "demonstration"),
    [
        ({"prompt": "p", "answer": "a"}, "p", "a", None),
        ({"problem": "p", "answer": "a", "solution": "s"}, "p", "a", "s"),
        ({"question": "p", "answer": 2.5}, "p", "2.5", None),
        ({"problem": "p", "solution": "a"}, "p", "a", None),
        ({"prompt": "p", "question": "q", "answer": -3, "demonstration": "d"}, "p", "-3", "d"),
    ],
)
def test_known_layouts(jsonl, record, prompt, answer, demonstration):
    assert load(jsonl(record)) == [Question("#1", prompt, answer, demonstration)]


def test_json_list_with_ids_and_grades(tmp_path):
    path = tmp_path / "test.json"
    records = [{"prompt": "p", "answer": "1", "id": "a/807.json", "grade": 3}, {"prompt": "q", "answer": "2"}]
    path.write_text(json.dumps(records))
    assert load(str(path)) == [Question("a/807.json", "p", "1", grade="3"), Question("#2", "q", "2")]


def test_mapped_columns_and_dotted_paths(jsonl):
    record = {
        "x": {"q": "p"},
        "gold": [],
        "gold.y": "4",
        "meta": {"level": {"n": 2}},
        "key": 7,
        "prompt": "other",
    }
    columns = {"prompt": "x.q", "answer": "gold.y", "grade": "meta.level.n", "id": "key"}
    assert load(jsonl(record), **columns) == [Question("7", "p", "4", None, "2")]


def test_text_is_kept_verbatim(jsonl):
    record = {"prompt": " \tWas ist 3×4? \n", "answer": " 12 ", "demonstration": "🧮 3×4\u2028= 12\n\n"}
    assert load(jsonl(json.dumps(record, ensure_ascii=False).encode())) == [Question("#1", *record.values())]


def test_blank_lines_and_byte_order_mark_are_skipped_but_counted(jsonl):
    assert [q.id for q in load(jsonl(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", GOOD))] == ["#1", "#3"]


def test_parquet_and_dataset_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
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
    message = error_of(str(tmp_path / "train.parquet"), need_demonstration=True)
    assert "train.parquet, record 2: field 'target' is null" in message


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"")
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] in ("pyarrow", "datasets"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for source in (str(tmp_path / "train.parquet"), str(tmp_path)):
        with pytest.raises(HptError, match=r"pip install 'hpt\[eval\]'"):
            load(source)


# ---- bad input


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
        ("f.tsv", b"prompt\tanswer", "a data file ends in .jsonl, .json, .csv, .parquet, not in '.tsv'"),
        ("f.csv", b"prompt,answer\n1+1?,2\n2+2?\n", "f.csv, record 2: has fewer fields than the first row"),
        ("f.csv", b"prompt,answer\n1+1?,2,3\n", "f.csv, record 1: has more fields than the first row"),
        ("f.csv", b"prompt,answer\n\xff,2\n", "f.csv is not UTF-8 text: invalid start byte at byte 15"),
        ("f.csv", b'prompt,answer\n"1+1?,2\n', "f.csv cannot be read as CSV: unexpected end of data"),
        ("f.csv", b"", "f.csv holds no questions"),
    ]:
        (tmp_path / name).write_bytes(content)
        message = error_of(str(tmp_path / name))
        assert name in message
        assert expected in message


def test_broken_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "g.parquet").write_bytes(b"PAR1 and then nothing")
    assert "g.parquet cannot be read as parquet" in error_of(str(tmp_path / "g.parquet"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "x", "answer": ', "is broken JSON at column 26: Expecting value"),
        (b'["x", "y"]', "is ['x', 'y']; allowed: an object"),
        (b'{"prompt": "\xff", "answer": 1}', "is not UTF-8 text: byte 0xff at byte 13"),
        ({"answer": "2"}, "field 'prompt' is missing; allowed: a string, or a list"),
        ({"prompt": " \n", "answer": "2"}, r"field 'prompt' is empty (' \n')"),
        ({"prompt": 3, "answer": "2"}, "field 'prompt' is 3; allowed"),
        ({"prompt": "x"}, "field 'answer' is missing; allowed: a string or a finite number"),
        ({"prompt": "x", "answer": None}, "field 'answer' is null"),
        ({"prompt": "x", "answer": ""}, "field 'answer' is empty"),
        ({"prompt": "x", "answer": True}, "field 'answer' is True"),
        (b'{"prompt": "x", "answer": NaN}', "field 'answer' is nan"),
        ({"prompt": "x", "answer": ["2"]}, "field 'answer' is ['2']"),
        ({"prompt": "x\0y", "answer": "2"}, "field 'prompt' holds a NUL character at position 1"),
        (b'{"prompt": "x", "answer": "\\ud83d"}', r"half of a surrogate pair ('\ud83d') at position 0"),
        ({"prompt": "x", "answer": "2", "demonstration": 5}, "field 'demonstration' is 5; allowed"),
        ({"prompt": "x", "answer": "2", "grade": {}}, "field 'grade' is {}"),
        ({"prompt": "x", "answer": "2", "id": False}, "field 'id' is False"),
        ({"prompt": [], "answer": "2"}, "has messages in the order (none)"),
        (GOOD | {"prompt": OPENR1["prompt"][:1]}, "has messages in the order system; allowed"),
        (GOOD | {"prompt": OPENR1["prompt"][::-1]}, "has messages in the order user, system"),
        (GOOD | {"prompt": OPENR1["prompt"] + OPENR1["target"]}, "in the order system, user, assistant"),
        ({"prompt": [{"role": "user", "content": " "}], "answer": "2"}, "has an empty user message"),
        ({"prompt": [{"role": "tool", "content": "x"}], "answer": "2"}, "as message 1; allowed: an object"),
        ({"prompt": [{"role": "user", "content": ["x"]}], "answer": "2"}, "a content that is a string"),
        ({"prompt": ["x"], "answer": "2"}, "has 'x' as message 1"),
        (
            GOOD | {"demonstration": OPENR1["prompt"]},
            "in the order system, user; allowed: one assistant message",
        ),
    ],
)
def test_bad_line_is_named(jsonl, line, expected):
    # A good record before it, in every column that the bad one may miss.
    source = jsonl(GOOD | {"id": "a", "grade": "g"}, line)
    message = error_of(source)
    assert message.startswith(f"{source}, line 2: ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("demonstration", [None, "", [], "missing"])
def test_demonstration_missing(jsonl, demonstration):
    record = {k: v for k, v in GOOD.items() if k != "demonstration" or demonstration != "missing"}
    if demonstration != "missing":
        record["demonstration"] = demonstration
    source = jsonl(GOOD, record)
    assert [q.demonstration for q in load(source)] == [GOOD["demonstration"], None]
    assert "line 2: field 'demonstration' is" in error_of(source, need_demonstration=True)


def test_missing_columns_say_what_was_looked_for(jsonl):
    message = error_of(jsonl({"query": "x", "answer": "2"}))
    assert "looked for prompt, problem, question; the records have answer, query" in message
    assert "data.columns.prompt" in message
    assert "looked for gold;" in error_of(jsonl(GOOD), answer="gold")
    assert "looked for level;" in error_of(jsonl(GOOD), grade="level")
    # One recipe names the columns of training and test file alike, and a test file needs no demonstrations.
    assert load(jsonl(GOOD), demonstration="steps")[0].demonstration is None
    assert "looked for steps;" in error_of(jsonl(GOOD), need_demonstration=True, demonstration="steps")
    # The solution is the answer here, so it is no demonstration.
    message = error_of(jsonl({"problem": "x", "solution": "2"}), need_demonstration=True)
    assert "column for the demonstration: looked for demonstration, target;" in message


def test_duplicate_ids_name_both_lines(jsonl):
    source = jsonl(GOOD | {"id": "a"}, GOOD | {"id": 1}, GOOD | {"id": "a"}, GOOD | {"id": "1"})
    message = error_of(source)
    assert "line 3: field 'id' is 'a', the id of line 1 too" in message
    assert "line 4: field 'id' is '1', the id of line 2 too" in message


def test_first_problems_and_a_count_in_one_message(jsonl):
    lines = [GOOD, *([{"prompt": "", "answer": ""}] * 8), b"{"]
    message = error_of(jsonl(*lines)).splitlines()
    assert message[0].endswith("has 17 problems:")
    assert [line.split(":")[0].strip() for line in message[1:6]] == [
        "line 2",
        "line 2",
        "line 3",
        "line 3",
        "line 4",
    ]
    assert message[6:] == ["  and 12 more"]


def test_long_values_are_cut(jsonl):
    assert len(error_of(jsonl(GOOD, GOOD | {"prompt": ["x" * 10**5] * 10}))) < 500


# ---- order


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40), epochs=st.integers(1, 4))
def test_every_question_once_an_epoch(n, batch_size, seed, epochs):
    order = QuestionOrder(n, batch_size, seed)
    steps = -(-n * epochs // batch_size)
    batches = [order.batch(step) for step in range(1, steps + 1)]
    assert {len(batch) for batch in batches} == {batch_size}
    seen = list(itertools.chain(*batches))
    for epoch in range(epochs):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    # A pure function of the step: any order of asking, and a new object, give the same.
    again = QuestionOrder(n, batch_size, seed)
    assert [again.batch(step) for step in range(steps, 0, -1)] == batches[::-1]


def test_order_depends_on_seed_and_epoch_and_is_uniform():
    assert QuestionOrder(50, 50, 0).batch(1) != QuestionOrder(50, 50, 1).batch(1)
    assert QuestionOrder(50, 50, 0).batch(1) != QuestionOrder(50, 50, 0).batch(2)
    first = Counter(QuestionOrder(4, 1, seed).batch(1)[0] for seed in range(4000))
    # 4 equally likely values, 4,000 draws: standard deviation sqrt(4000 * 3/16) = 27.4.
    assert all(abs(first[i] - 1000) < 5 * 27.4 for i in range(4))


def test_order_is_the_same_in_every_version():
    assert QuestionOrder(6, 6, 0).batch(1) == [0, 1, 5, 3, 4, 2]


def test_order_refuses_what_has_no_meaning():
    for n, batch_size in [(0, 1), (1, 0)]:
        with pytest.raises(ValueError, match="at least one question"):
            QuestionOrder(n, batch_size, 0)
    with pytest.raises(ValueError, match="count from 1"):
        QuestionOrder(3, 1, 0).batch(0)
