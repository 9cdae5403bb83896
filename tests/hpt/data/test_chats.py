"""TRL's and OpenAI's formats become questions as they are, in every kind of file."""

import csv
import json

import datasets
import pytest
from question_files import GOOD, error_of, load

from hpt.data.questions import Question

SYSTEM, ASK = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}
SAY, AGAIN = {"role": "assistant", "content": "2"}, {"role": "user", "content": "2+2?"}
END = {"role": "assistant", "content": "<think>4</think>\n4 "}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
}
RESULT = {"role": "tool", "name": "add", "content": "2"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def in_parts(message):
    text = message["content"]
    return message | {"content": [{"type": "text", "text": text[:1]}, {"type": "text", "text": text[1:]}]}


@pytest.mark.parametrize(
    ("record", "prompt", "demonstration"),
    [
        ({"prompt": "The sky is", "completion": " blue."}, "The sky is", " blue."),
        ({"prompt": [ASK], "completion": [SAY]}, (ASK,), "2"),
        ({"prompt": [ASK], "completion": [SAY, AGAIN, END]}, (ASK, SAY, AGAIN), END["content"]),
        ({"prompt": "1+1?", "completion": [SAY, AGAIN, END]}, (ASK, SAY, AGAIN), END["content"]),
        ({"prompt": "1+1?"}, "1+1?", None),
        ({"prompt": [SYSTEM, ASK]}, (SYSTEM, ASK), None),
        ({"messages": [ASK, SAY]}, (ASK,), "2"),
        ({"messages": [SYSTEM, ASK, SAY, AGAIN, END]}, (SYSTEM, ASK, SAY, AGAIN), END["content"]),
        (
            {"messages": [{"role": "developer", "content": "x"}, ASK, SAY]},
            ({"role": "developer", "content": "x"}, ASK),
            "2",
        ),
        ({"messages": [ASK, SAY, AGAIN]}, (ASK, SAY, AGAIN), None),
        ({"messages": [ASK, CALL, RESULT, SAY]}, (ASK, CALL, RESULT), "2"),
        ({"messages": [in_parts(ASK), in_parts(SAY)]}, (ASK,), "2"),
        # ultrachat has a prompt beside its messages; OpenR1-Math-220k has a problem and a solution.
        ({"prompt": "1+1?", "prompt_id": "a", "messages": [ASK, SAY, AGAIN, END]}, (ASK, SAY, AGAIN), END["content"]),
        ({"problem": "p", "solution": "s", "answer": "a", "messages": [ASK, SAY]}, "p", "s"),
    ],
)
def test_formats_that_work_as_they_are(jsonl, tmp_path, record, prompt, demonstration):
    (question,) = load(jsonl(record), need_answer=False)
    assert (question.prompt, question.demonstration, question.turn) == (prompt, demonstration, None)
    (tmp_path / "a.json").write_text(json.dumps([record]))
    datasets.Dataset.from_list([record]).to_parquet(tmp_path / "a.parquet")
    for file in ("a.json", "a.parquet"):
        assert load(str(tmp_path / file), need_answer=False) == [question]


def test_messages_and_tools_of_a_csv_file_are_json(tmp_path):
    with (tmp_path / "a.csv").open("w") as file:
        csv.writer(file).writerows([["messages", "tools"], [json.dumps([ASK, SAY]), json.dumps(TOOLS)]])
    (question,) = load(str(tmp_path / "a.csv"), need_answer=False)
    assert question == Question("#1", (ASK,), None, "2", tools=TOOLS)
    (tmp_path / "b.csv").write_text("messages\nhello\n")
    assert "record 1: field 'messages' is 'hello', which is not JSON" in error_of(
        str(tmp_path / "b.csv"), need_answer=False
    )


def test_a_demonstration_that_is_more_than_text_keeps_its_message(jsonl):
    thought = SAY | {"reasoning_content": "one and one"}
    for turn in (CALL, thought):
        (question,) = load(
            jsonl({"messages": [ASK, turn], "tools": TOOLS}), need_answer=False, demonstrations="required"
        )
        assert question == Question("#1", (ASK,), None, turn["content"], turn=turn, tools=TOOLS)
    # What a table adds to messages that lack a key changes nothing.
    (question,) = load(jsonl({"messages": [ASK | {"tool_calls": None}, SAY | {"tool_calls": None}]}), need_answer=False)
    assert (question.prompt, question.turn) == ((ASK,), None)


def test_weights_of_openai_choose_the_demonstration(jsonl):
    right, wrong = SAY | {"weight": 1}, END | {"weight": 0}
    need = {"need_answer": False, "demonstrations": "required"}
    (question,) = load(jsonl({"messages": [ASK, wrong, AGAIN, right]}), **need)
    assert (question.prompt, question.demonstration) == ((ASK, wrong, AGAIN), "2")
    # What follows the last turn to be trained is left out.
    for record in ({"messages": [ASK, right, AGAIN, wrong]}, {"prompt": [ASK], "completion": [right, AGAIN, wrong]}):
        (question,) = load(jsonl(record), **need)
        assert (question.prompt, question.demonstration) == ((ASK,), "2")
    untrained = jsonl({"messages": [ASK, wrong]})
    assert [(each.prompt, each.demonstration) for each in load(untrained, need_answer=False)] == [((ASK,), None)]
    assert "needs an assistant message, not of weight 0, as the last" in error_of(untrained, **need)
    assert "field 'completion' is" in error_of(jsonl({"prompt": "p", "completion": [wrong]}), **need)


@pytest.mark.parametrize("column", ["conversations", "conversation", "messages"])
def test_sharegpt_is_read_as_it_is(jsonl, column):
    talk = [("system", "Be brief."), ("human", "1+1?"), ("gpt", "2")]
    record = {column: [{"from": role, "value": text} for role, text in talk]}
    assert load(jsonl(record), need_answer=False) == [Question("#1", (SYSTEM, ASK), None, "2")]
    # Beside a prompt, only a column of that name is taken for the question.
    (question,) = load(jsonl(record | {"prompt": "p"}), need_answer=False)
    assert question.prompt == ((SYSTEM, ASK) if column == "messages" else "p")


@pytest.mark.parametrize("value", [{"enable_thinking": False, "style": None}, '{"enable_thinking": false}'])
def test_a_record_has_kwargs_for_its_chat_template(jsonl, value):
    (question,) = load(jsonl(GOOD | {"chat_template_kwargs": value}))
    assert question.chat_template_kwargs == {"enable_thinking": False}
    assert load(jsonl(GOOD | {"kwargs": value}), chat_template_kwargs="kwargs")[0].chat_template_kwargs


def test_nulls_among_the_arguments_of_a_tool_call_stay(jsonl):
    function = {"name": "add", "arguments": {"a": None, "b": [{"c": None}]}}
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": None, "function": function}]}
    (question,) = load(jsonl({"messages": [ASK, call]}), need_answer=False)
    assert question.turn == {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": [ASK, SAY | {"weight": 0.5}]}, "field 'messages' has a weight of 0.5 in message 2; allowed: 0"),
        ({"messages": [{"from": "bing", "value": "x"}, SAY]}, "as message 1; allowed: an object with a role"),
        ({"messages": "x"}, "field 'messages' is 'x', which is not JSON"),
        ({"messages": {}}, "field 'messages' is {}; allowed: a list of {role, content} messages"),
        ({"messages": [SAY]}, "field 'messages' has a single assistant message"),
        ({"messages": [SAY, ASK, SAY, SAY]}, "in the order assistant, user, assistant; allowed"),
        ({"messages": [ASK, SYSTEM, SAY]}, "in the order user, system; allowed"),
        ({"messages": [RESULT, ASK, SAY]}, "in the order tool, user; allowed"),
        ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "has an empty assistant message as its last"),
        ({"messages": [ASK, {"role": "assistant", "content": ""}, AGAIN, SAY]}, "has an empty assistant message"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAY]}, "a content that is a string"),
        ({"messages": [ASK, SAY], "tools": "{"}, "field 'tools' is '{', which is not JSON"),
        (GOOD | {"chat_template_kwargs": [1]}, "field 'chat_template_kwargs' is [1]; allowed: an object, or JSON"),
        (GOOD | {"chat_template_kwargs": {"tools": 1}}, "field 'chat_template_kwargs' has tools, which hpt itself"),
        ({"messages": [ASK, SAY], "tools": [3]}, "field 'tools' is [3]; allowed: a list of objects"),
        ({"prompt": [ASK], "completion": [SAY, AGAIN]}, "in the order assistant, user; allowed: one assistant message"),
        ({"prompt": [ASK], "completion": [SAY, SYSTEM, END]}, "field 'completion', after the prompt, has messages in"),
    ],
)
def test_bad_chats_are_named(jsonl, record, expected):
    assert expected in error_of(jsonl(record), need_answer=False)


def test_training_on_demonstrations_needs_the_assistant_last(jsonl):
    message = error_of(jsonl({"messages": [ASK]}), demonstrations="required", need_answer=False)
    assert (
        "line 1: field 'messages' has messages in the order user; training on demonstrations needs an assistant"
        in message
    )


def test_answers_are_needed_only_where_something_reads_them(jsonl):
    source = jsonl({"prompt": "p", "answer": None}, {"prompt": "q"}, {"prompt": "r", "answer": 3})
    assert [question.answer for question in load(source, need_answer=False)] == [None, None, "3"]
    assert "line 1: field 'answer' is null" in error_of(source)
    assert "no record has a column for the answer" in error_of(jsonl({"prompt": "p"}))
    assert "field 'answer' is True" in error_of(jsonl({"prompt": "p", "answer": True}), need_answer=False)


def test_the_record_comes_along_as_it_is(jsonl):
    record = GOOD | {"level": 3, "meta": {"a": [1, None]}}
    assert [question.columns for question in load(jsonl(record, GOOD))] == [
        record,
        GOOD | {"level": None, "meta": None},
    ]


def test_paths_index_lists(jsonl):
    record = {"turns": [ASK, SAY], "choices": [{"text": "a"}, {"text": "b"}], "gold": ["4", "5"]}
    columns = {"prompt": "turns.0.content", "answer": "gold.-1", "demonstration": "choices.1.text"}
    assert load(jsonl(record), **columns) == [Question("#1", "1+1?", "5", "b")]
    assert "looked for turns.2.content;" in error_of(jsonl(record), prompt="turns.2.content", answer="gold.0")
    assert load(jsonl({"chat": [ASK, SAY]}), messages="chat", need_answer=False)[0].prompt == (ASK,)
    assert "looked for dialogue;" in error_of(jsonl({"chat": [ASK, SAY]}), messages="dialogue", need_answer=False)
