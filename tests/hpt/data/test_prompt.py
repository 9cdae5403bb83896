"""Prompts and responses are the tokens that the tokenizer and its chat template mean, and nothing is rewritten."""

import dataclasses
import unicodedata

import pytest
from chat_tokenizers import (
    END,
    LLAMA_PROMPT,
    NAMES,
    QWEN,
    byte_level,
    decode,
    llama3_by_gpt2,
    question,
    renderer,
    tokenizers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from hpt.config.sections.data import PromptConfig
from hpt.data.prompt import PromptRenderer
from hpt.support.errors import ConfigError, DataError

# Qwen3's way to turn thinking off: an empty thought in the prompt.
SWITCHED = """{%- for m in messages %}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
THOUGHTLESS = {"enable_thinking": False}

# ---- prompts


def test_the_chat_template_gets_the_kwargs_of_the_config_and_of_the_record():
    tokenizer = byte_level(SWITCHED, "<|endoftext|>", None, ("<|im_start|>", "<|im_end|>"))
    usual = PromptRenderer(tokenizer, PromptConfig())
    switched = PromptRenderer(tokenizer, PromptConfig(chat_template_kwargs=THOUGHTLESS))
    empty_thought = "<think>\n\n</think>\n\n"
    asked, own = question(), dataclasses.replace(question(), chat_template_kwargs=THOUGHTLESS)
    assert not usual.prompt_text(asked).endswith(empty_thought)
    assert switched.prompt_text(asked) == usual.prompt_text(own) == usual.prompt_text(asked) + empty_thought
    # The record's own come on top, and a demonstration is checked against the prompt that it follows.
    thinking = dataclasses.replace(
        question(demonstration="<think>7</think>"), chat_template_kwargs={"enable_thinking": True}
    )
    assert switched.prompt_text(thinking) == usual.prompt_text(asked)
    assert decode(tokenizer, switched.demonstration_ids(thinking)) == "<think>7</think><|im_end|>"
    with pytest.raises(DataError, match="begins with <think>, but the prompt ends in </think>"):
        usual.demonstration_ids(dataclasses.replace(thinking, chat_template_kwargs=THOUGHTLESS))
    with pytest.raises(ConfigError, match=r"prompt\.chat_template_kwargs needs prompt\.style=chat"):
        PromptRenderer(tokenizer, PromptConfig(style="plain", chat_template_kwargs=THOUGHTLESS))
    with pytest.raises(ValueError, match="hpt itself sets tools"):
        PromptConfig(chat_template_kwargs={"tools": []})


@pytest.mark.parametrize("name", NAMES)
def test_chat_prompt_is_what_the_chat_template_gives(name):
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "the"},
        {"role": "user", "content": "3×4?"},
    ]
    tokenizer = tokenizers()[name]
    for prompt in (messages, messages[:1]):
        expected = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        assert renderer(name).prompt_ids(question(tuple(prompt))) == expected
    assert renderer(name).prompt_ids(question("Hi")) == renderer(name).prompt_ids(question(tuple(messages[:1])))


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_exactly_one_bos_where_the_tokenizer_adds_one(name, style):
    tokenizer = tokenizers()[name]
    ids = renderer(name, style=style).prompt_ids(question())
    if name.startswith("qwen"):
        assert tokenizer.bos_token_id is None
    else:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        spelt_out = renderer(name, style="plain", template=tokenizer.bos_token + "{question}")
        assert spelt_out.prompt_ids(question()).count(tokenizer.bos_token_id) == 1


def test_a_recipe_may_leave_the_bos_out():
    with_bos, without = (renderer("llama3", style="plain", bos=bos) for bos in (True, False))
    assert with_bos.prompt_ids(question()) == [with_bos.tokenizer.bos_token_id, *without.prompt_ids(question())]
    assert with_bos.demonstration_ids(question()) == without.demonstration_ids(question())


def test_bos_is_added_where_a_chat_template_forgets_it():
    tokenizer = byte_level(QWEN, "<eos>", "<bos>", ("<|im_start|>", "<|im_end|>"))
    ids = PromptRenderer(tokenizer, PromptConfig(style="chat", system=None, template="{question}")).prompt_ids(
        question()
    )
    assert ids[:2] == tokenizer.convert_tokens_to_ids(["<bos>", "<|im_start|>"])


def test_a_bos_that_the_tokenizer_does_not_add_is_left_out():
    tokenizer = byte_level(None, "<eos>", "<bos>", ("<other>",))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    ids = PromptRenderer(tokenizer, PromptConfig(style="plain", system=None, template="{question}")).prompt_ids(
        question("a")
    )
    assert ids == tokenizer.convert_tokens_to_ids(["a"])


def test_plain_template_replaces_nothing_but_the_question():
    text = renderer("llama3", style="plain", template=LLAMA_PROMPT).prompt_text(
        question("Is {0} {question} in $\\{1\\}$?")
    )
    assert text == (
        "Question:\nIs {0} {question} in $\\{1\\}$?\nPlease reason step by step, and put your final answer within "
        "\\boxed{}.\nAnswer:\nLet's think step by step."
    )


def test_template_wraps_the_last_user_message_of_a_chat():
    messages = tuple(
        {"role": role, "content": text} for role, text in [("user", "A"), ("assistant", "B"), ("user", "C")]
    )
    text = renderer("qwen3", template="<< {question} >>").prompt_text(question(messages))
    assert text == (
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nB<|im_end|>\n"
        "<|im_start|>user\n<< C >><|im_end|>\n<|im_start|>assistant\n"
    )


def test_system_message_of_the_recipe_takes_the_place_of_the_datas():
    chat = ({"role": "system", "content": "Data's."}, {"role": "user", "content": "Hi"})
    user = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    for system, prompt, expected in [
        (None, chat, "<|im_start|>system\nData's.<|im_end|>\n"),
        (None, "Hi", default),
        ("Mine.", chat, "<|im_start|>system\nMine.<|im_end|>\n"),
        ("Mine.", "Hi", "<|im_start|>system\nMine.<|im_end|>\n"),
        ("", chat, default),
    ]:
        assert renderer("qwen", system=system).prompt_text(question(prompt)) == expected + user
    assert renderer("gemma", system="").prompt_text(question(chat)).startswith("<bos><start_of_turn>user\nHi<end")
    assert renderer("qwen", style="plain").prompt_text(question(chat)) == "Hi"


# ---- responses


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30),
    start=st.sampled_from(["", " ", "\n\n", "<think>\nthe\n</think>\n", "e\u0301", "🧮"]),
)
def test_prompt_and_response_are_the_text_and_nothing_else(name, style, text, start):
    text = unicodedata.normalize("NFC", start + text)  # as Qwen's tokenizer does
    if name == "r1":
        text = "the </think> " + text
    if name == "mistral":
        text = text.replace("▁", "_")  # SentencePiece's own space
    made = renderer(name, style=style)
    asked = question(prompt="Why " + text.replace("<think>", ""), demonstration=text)
    prompt, response = made.prompt_ids(asked), made.demonstration_ids(asked)
    end = END[name] if style == "chat" else made.tokenizer.eos_token
    lead = " " if name == "mistral" and style == "chat" else ""
    rendered = made.prompt_text(asked)
    joint = decode(made.tokenizer, prompt + response)
    if style == "plain" and made.tokenizer.bos_token:
        rendered = made.tokenizer.bos_token + rendered
    if name == "mistral":
        # The space that this tokenizer puts before a text comes before the prompt, and nowhere else.
        joint = joint.removeprefix("<s>").lstrip(" ")
        rendered = rendered.removeprefix("<s>").lstrip(" ")
    assert joint == rendered + lead + text + end
    assert response[-1] == made.tokenizer.convert_tokens_to_ids(end) == made.stop_ids[0]


@pytest.mark.parametrize("name", ["qwen", "gemma", "mistral"])
def test_response_is_what_the_template_renders_for_an_assistant(name):
    made, asked = renderer(name), question()
    messages = [{"role": "user", "content": asked.prompt}, {"role": "assistant", "content": asked.demonstration}]
    rendered = made.tokenizer.apply_chat_template(messages, tokenize=False)
    ids = made.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    mine = made.prompt_ids(asked) + made.demonstration_ids(asked)
    if name in ("qwen", "gemma"):  # a line break follows the end token, of which the model will never write it
        assert decode(made.tokenizer, ids[len(mine) :]) == "\n"
    assert ids[: len(mine)] == mine


def test_tokens_never_reach_over_the_boundary():
    # GPT-2's splitting makes one token of a text's last two line breaks, and two of them before a word: rollouts see
    # the one, so training does, though the whole text would be tokenised with two.
    made, asked = llama3_by_gpt2(), question()
    prompt, response = made.prompt_ids(asked), made.demonstration_ids(asked)
    whole = made.tokenizer(decode(made.tokenizer, prompt + response), add_special_tokens=False)["input_ids"]
    assert decode(made.tokenizer, whole) == decode(made.tokenizer, prompt + response)
    assert decode(made.tokenizer, prompt[-1:]) == "\n\n"
    assert whole[: len(prompt)] != prompt


def test_thoughts_are_kept_where_the_template_would_rewrite_them():
    for demonstration in ("<think>\n 1\n\n</think>\nseven ", "seven"):
        made, asked = renderer("qwen3"), question(demonstration=demonstration)
        assert decode(made.tokenizer, made.demonstration_ids(asked)) == demonstration + "<|im_end|>"


@pytest.mark.parametrize("start", ["<think>\n", "<think>", "\n<think>", ""])
def test_an_opened_thought_is_the_demonstrations_own(start):
    made, asked = renderer("r1"), question(demonstration=start + "3+4\n</think>\n7")
    joint = decode(made.tokenizer, made.prompt_ids(asked) + made.demonstration_ids(asked))
    assert joint == "<|begin|><|User|>What is 3+4?<|Assistant|><think>\n3+4\n</think>\n7<|end|>"


def test_thoughts_that_do_not_fit_the_prompt_are_errors():
    with pytest.raises(DataError, match="question q: the prompt ends in <think>"):
        renderer("r1").demonstration_ids(question(demonstration="7"))
    closed = renderer("qwen3", style="plain", template="{question} <think>\n\n</think>\n\n")
    with pytest.raises(DataError, match="question q: its demonstration begins with <think>"):
        closed.demonstration_ids(question(demonstration="<think>\n</think>7"))
    assert decode(closed.tokenizer, closed.demonstration_ids(question(demonstration="7"))) == "7<|im_end|>"


def test_end_token_spelt_out_is_not_doubled_and_is_refused_inside():
    made = renderer("qwen")
    plain = made.demonstration_ids(question(demonstration="7"))
    assert made.demonstration_ids(question(demonstration="7<|im_end|>")) == plain
    for inside in ("7<|im_end|>\n", "7<|endoftext|>", "<|im_end|>7<|im_end|>"):
        with pytest.raises(DataError, match=r"question q: its demonstration goes on after '<\|"):
            made.demonstration_ids(question(demonstration=inside))


def test_missing_demonstration_is_an_error():
    with pytest.raises(DataError, match="question q has no demonstration"):
        renderer("qwen").demonstration_ids(question(demonstration=None))


def test_many_questions_at_once_give_the_same():
    made = renderer("llama3")
    many = [question(f"{n}?", f"It is {n}.") for n in range(20)]
    assert made.encode_prompts(many) == [made.prompt_ids(q) for q in many]
    assert made.encode_demonstrations(many) == [made.demonstration_ids(q) for q in many]
    assert made.encode_prompts([]) == made.encode_demonstrations([]) == []


def test_stop_ids():
    def ids(name, *tokens):
        return tokenizers()[name].convert_tokens_to_ids(list(tokens))

    assert renderer("qwen").stop_ids == ids("qwen", "<|im_end|>", "<|endoftext|>")
    assert renderer("qwen", style="plain").stop_ids == ids("qwen", "<|endoftext|>")
    assert renderer("llama3").stop_ids == ids("llama3", "<|eot_id|>", "<|end_of_text|>")
    assert renderer("mistral").stop_ids == ids("mistral", "</s>")
    assert renderer("qwen", eos_token_ids=[300]).stop_ids == [
        *ids("qwen", "<|im_end|>"),
        300,
        *ids("qwen", "<|endoftext|>"),
    ]
    both = ids("qwen", "<|endoftext|>", "<|im_end|>")
    assert renderer("qwen", style="plain", eos_token_ids=both).stop_ids == both


def test_a_recipe_may_end_responses_with_the_eos_of_the_tokenizer():
    turn, eos = renderer("qwen"), renderer("qwen", end="eos")
    assert eos.stop_ids == [eos.tokenizer.eos_token_id]
    assert eos.prompt_ids(question()) == turn.prompt_ids(question())
    assert eos.demonstration_ids(question()) == [*turn.demonstration_ids(question())[:-1], *eos.stop_ids]


def test_template_without_an_end_token_ends_in_the_tokenizers():
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = byte_level(template, "<eos>")
    made = PromptRenderer(tokenizer, PromptConfig(style="chat", system=None, template="{question}"))
    joint = made.prompt_ids(question()) + made.demonstration_ids(question())
    assert decode(tokenizer, joint) == "user: What is 3+4?\nassistant: 3+4 = 7<eos>"


# ---- what cannot be rendered


def test_impossible_settings_name_the_fix():
    for tokenizer, style, system, expected in [
        (byte_level(None, "<eos>"), "chat", None, "has no chat template: set prompt.style=plain"),
        (tokenizers()["qwen"], "plain", "Be good.", "prompt.system needs prompt.style=chat"),
        (
            byte_level("{% for m in messages %}{{ m['role'] + ':' + m['content'] }}{% endfor %}", "<eos>"),
            "chat",
            None,
            "ignores add_generation_prompt: a prompt would stop before 'assistant:'",
        ),
    ]:
        with pytest.raises(ConfigError, match=expected):
            PromptRenderer(tokenizer, PromptConfig(style=style, system=system, template="{question}"))
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    with pytest.raises(ConfigError, match="no eos_token"):
        PromptRenderer(endless, PromptConfig(style="plain", system=None, template="{question}"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1/0 }}", "division by zero"),
        ("{{ range(99999999999) | list }}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)
def test_a_template_that_fails_in_any_way_is_named(template, said):
    with pytest.raises(DataError, match=f"the chat template of this model refuses messages of user: .*{said}"):
        PromptRenderer(byte_level(template, "<eos>"), PromptConfig(style="chat", system=None, template="{question}"))


def test_messages_that_the_template_refuses():
    with pytest.raises(DataError, match=r"refuses messages of system, user: System role not supported"):
        renderer("gemma", system="Be good.")
    chat = ({"role": "system", "content": "x"}, {"role": "user", "content": "Hi"})
    with pytest.raises(DataError, match="question q: the chat template"):
        renderer("gemma").prompt_ids(question(chat))
    turns = tuple({"role": role, "content": "x"} for role in ("user", "assistant", "user"))
    with pytest.raises(DataError, match=r"question q has several turns, which needs prompt.style=chat"):
        renderer("gemma", style="plain").prompt_ids(question(turns))
