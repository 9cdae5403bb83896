"""Questions are read verbatim, and every kind of bad record is named once, with its place."""

import pytest
from question_files import GOOD, OPENR1, error_of, load

from hpt.data.questions import Question


def test_openr1_layout_needs_no_mapping(jsonl):
    second = OPENR1 | {"reward_model": {"ground_truth": "5", "style": "rule"}}
    first, other = load(jsonl(OPENR1, second), demonstrations="required")
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
        ({"prompt": [{"role": "ipython", "content": "x"}], "answer": "2"}, "as message 1; allowed: an object"),
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
    assert "line 2: field 'demonstration' is" in error_of(source, demonstrations="required")


def test_missing_columns_say_what_was_looked_for(jsonl):
    message = error_of(jsonl({"query": "x", "answer": "2"}))
    assert "looked for prompt, problem, question; the records have answer, query" in message
    assert "data.columns.prompt" in message
    assert "looked for gold;" in error_of(jsonl(GOOD), answer="gold")
    assert "looked for level;" in error_of(jsonl(GOOD), grade="level")
    # One recipe names the columns of training and test file alike, and a test file needs no demonstrations.
    assert load(jsonl(GOOD), demonstration="steps")[0].demonstration is None
    assert "looked for steps;" in error_of(jsonl(GOOD), demonstrations="required", demonstration="steps")
    # The solution is the answer here, so it is no demonstration.
    message = error_of(jsonl({"problem": "x", "solution": "2"}), demonstrations="required")
    assert "column for the demonstration: looked for demonstration, target, completion;" in message
    assert "data.columns.answer=solution data.columns.demonstration=solution makes it both" in message
    both = {"answer": "solution", "demonstration": "solution"}
    (question,) = load(jsonl({"problem": "x", "solution": "2"}), demonstrations="required", **both)
    assert (question.answer, question.demonstration) == ("2", "2")


def test_a_solution_is_the_demonstration_where_no_answer_is_needed(jsonl):
    source = jsonl({"problem": "x", "solution": "2"})
    (question,) = load(source, demonstrations="required", need_answer=False)
    assert (question.answer, question.demonstration) == (None, "2")
    # A column that was named for one field is no other's.
    (question,) = load(source, demonstration="solution", need_answer=False)
    assert (question.answer, question.demonstration) == (None, "2")
    (question,) = load(jsonl({"problem": "x", "solution": "2", "target": "3"}), demonstrations="required")
    assert (question.answer, question.demonstration) == ("2", "3")


@pytest.mark.parametrize("column", ["text", "dialogue"])
def test_a_chat_in_an_unknown_column_is_answered_with_its_setting(jsonl, column):
    message = error_of(jsonl({column: [{"role": "user", "content": "x"}]}), need_answer=False)
    assert "Name the column by data.columns.prompt=NAME" in message
    assert "or by data.columns.messages=NAME where it is a list of messages: {role, content}, or ShareGPT" in message


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
