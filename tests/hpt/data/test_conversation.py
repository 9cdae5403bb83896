"""Conversations, tools and tool calls as tokens, and which of them are trained."""

import io
import json

import pytest
from chat_tokenizers import END, byte_level, decode, llama3_by_gpt2, question, renderer, tokenizers
from rich.console import Console

from hpt.config.sections.data import PromptConfig
from hpt.data.preview import show_row
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question
from hpt.data.selection import select_by_length
from hpt.support.errors import DataError

ASK, SAY = {"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "the 7"}
AGAIN, END_TURN = {"role": "user", "content": "Is it 7?"}, {"role": "assistant", "content": "Yes."}
TALK = Question("talk", (ASK, SAY, AGAIN), None, END_TURN["content"])

TOOL_TEMPLATE = """{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}
{%- for call in m['tool_calls'] or [] %}{{ '[call ' + call.function.name + ']' }}{% endfor %}{{ '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
RESULT = {"role": "tool", "content": "7"}


def with_tools():
    tokenizer = byte_level(TOOL_TEMPLATE, "<|endoftext|>", None, ("<|im_start|>", "<|im_end|>"))
    return PromptRenderer(tokenizer, PromptConfig())


@pytest.mark.parametrize("name", ["qwen", "llama3", "gemma", "mistral"])
def test_a_conversation_is_what_the_template_gives_with_every_turn_and_its_end_trained(name):
    tokenizer, made = tokenizers()[name], renderer(name)
    row = made.conversation(TALK)
    whole = tokenizer.apply_chat_template([*TALK.prompt, END_TURN], return_dict=False)
    assert row.tokens == whole[: len(row.tokens)]
    assert decode(tokenizer, whole[len(row.tokens) :]).strip() == ""
    said = [decode(tokenizer, ids).strip() for ids, trained in row.parts if trained]
    assert said == [SAY["content"] + END[name], END_TURN["content"] + END[name]]
    # Each turn is trained as if the conversation ended with it, after the prompt that its rollouts see.
    assert row.tokens[: -len(row.parts[-1][0])] == made.prompt_ids(TALK)
    first = question((ASK,), SAY["content"])
    assert row.tokens[: row.prompt_length] == made.prompt_ids(first)
    assert next(ids for ids, trained in row.parts if trained) == made.demonstration_ids(first)
    assert len(row.mask) == len(row.tokens) - row.prompt_length
    assert made.conversation(first) is None


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_a_template_that_rewrites_earlier_turns_is_refused_and_named(name):
    with pytest.raises(DataError) as caught:
        renderer(name).conversation(TALK)
    message = str(caught.value)
    assert 'question talk: data.loss_on "all" needs a chat template that keeps earlier turns' in message
    assert "rewrites message 2, the assistant's 'the 7'" in message
    assert "data.loss_on=last" in message
    with pytest.raises(DataError, match="question talk"):
        select_by_length([TALK], renderer(name), max_prompt_tokens=None, max_demonstration_tokens=None, all_turns=True)


@pytest.mark.parametrize("name", ["qwen", "r1"])
def test_a_turn_of_weight_0_is_read_and_not_trained(name):
    made, unsaid = renderer(name), SAY | {"weight": 0}
    two = Question("talk", (ASK, unsaid, AGAIN), None, END_TURN["content"])
    assert made.conversation(two) is None
    if name == "qwen":  # The other rewrites earlier turns, which matters only where they are trained.
        row = made.conversation(Question("talk", (*two.prompt, SAY, AGAIN), None, END_TURN["content"]))
        assert row.prompt_length == len(made.prompt_ids(two))
        assert [trained for _, trained in row.parts] == [False, True, False, True]


def test_a_tokenizer_that_splits_earlier_turns_otherwise_is_refused_and_named():
    with pytest.raises(DataError) as caught:
        llama3_by_gpt2().conversation(TALK)
    message = str(caught.value)
    assert 'question talk: data.loss_on "all" needs a tokenizer that splits earlier turns as they were' in message
    assert "splits message 2, the assistant's 'the 7', in another way" in message
    assert "data.loss_on=last" in message


def test_thoughts_that_a_template_drops_from_history_are_refused_and_others_trained():
    """Qwen3's template keeps the thought of the last turn and drops that of earlier ones."""
    drops = """{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}
{{- m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
    made = PromptRenderer(byte_level(drops, "<|endoftext|>", None, ("<|im_start|>", "<|im_end|>")), PromptConfig())
    assert sum(trained for _, trained in made.conversation(TALK).parts) == 2
    thought = {"role": "assistant", "content": "<think>3+4</think>the 7"}
    with pytest.raises(DataError, match="rewrites message 2"):
        made.conversation(Question("talk", (ASK, thought, AGAIN), None, END_TURN["content"]))


def test_the_prompts_template_wraps_the_last_user_message_only():
    row = renderer("llama3", template="Q: {question}").conversation(TALK)
    text = decode(tokenizers()["llama3"], row.tokens)
    assert "Q: Is it 7?" in text
    assert "Q: 3+4?" not in text


def test_tools_and_tool_messages_reach_the_chat_template():
    made = with_tools()
    asked = Question("q", (ASK, CALL, RESULT), None, "It is 7.", tools=TOOLS)
    text = made.prompt_text(asked)
    assert text.startswith("<|im_start|>tools\n" + json.dumps(TOOLS[0]))
    assert "[call add]<|im_end|>\n<|im_start|>tool\n7<|im_end|>\n" in text
    said = [decode(made.tokenizer, ids) for ids, trained in made.conversation(asked).parts if trained]
    assert said == ["[call add]<|im_end|>", "It is 7.<|im_end|>"]
    assert not made.ignores_tools
    assert renderer("qwen").ignores_tools
    assert renderer("qwen", style="plain").ignores_tools


def test_a_demonstration_of_tool_calls_is_as_the_template_writes_it():
    made = with_tools()
    asked = Question("q", (ASK,), None, "", turn=CALL, tools=TOOLS)
    assert decode(made.tokenizer, made.demonstration_ids(asked)) == "[call add]<|im_end|>"
    many = [asked, question(), asked]
    assert made.encode_demonstrations(many) == [made.demonstration_ids(each) for each in many]
    plain = PromptRenderer(made.tokenizer, PromptConfig(style="plain"))
    with pytest.raises(
        DataError, match=r"question q: its demonstration has tool calls, which needs prompt\.style=chat"
    ):
        plain.demonstration_ids(asked)


def test_prompt_system_replaces_a_developer_message():
    developer = {"role": "developer", "content": "D"}
    text = renderer("llama3", system="S").prompt_text(question((developer, ASK)))
    assert "developer" not in text
    assert "S<|eot_id|>" in text
    assert "developer<|end_header_id|>\n\nD" in renderer("llama3").prompt_text(question((developer, ASK)))


def test_a_row_is_shown_with_what_is_trained_even_without_colours():
    console = Console(file=io.StringIO(), width=200)
    console.print(show_row(renderer("llama3"), TALK, all_turns=True))
    text = console.file.getvalue()
    row = renderer("llama3").conversation(TALK)
    assert f"Conversation of question talk: {len(row.tokens)} tokens, {sum(row.mask)} of them trained" in text
    assert text.count("tokens, trained, the last one <|eot_id|>") == 2
    assert text.index("Read: ") < text.index("Said: ")
