"""Tokenizers are loaded, or the error says why not."""

import pytest
from chat_tokenizers import question, renderer, tokenizers

from hpt.config.sections.data import PromptConfig
from hpt.data.prompt import PromptRenderer
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.support.errors import HptError


def test_load_tokenizer(tmp_path):
    tokenizers()["llama3"].save_pretrained(tmp_path / "good")
    loaded = load_tokenizer(str(tmp_path / "good"))
    made = PromptRenderer(loaded, PromptConfig(style="chat", system=None, template="{question}"))
    assert made.prompt_ids(question()) == renderer("llama3").prompt_ids(question())

    empty = tmp_path / "empty"
    empty.mkdir()
    # transformers itself would make an empty tokenizer of this.
    (empty / "config.json").write_text('{"model_type": "qwen2"}')
    (empty / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(HptError, match=r"folder .*empty has no tokenizer: expected one of tokenizer\.json"):
        load_tokenizer(str(empty))
    (empty / "tokenizer.json").write_text("{broken")
    with pytest.raises(HptError, match=r"no tokenizer could be loaded from .*empty: JSONDecodeError"):
        load_tokenizer(str(empty))
    with pytest.raises(HptError, match=r"model\.path = .*nowhere': there is no such file or folder"):
        load_tokenizer(str(tmp_path / "nowhere"))


def test_generation_ends(tmp_path):
    assert generation_ends(str(tmp_path)) == []
    for written, expected in (("7", [7]), ("[7, 9]", [7, 9]), ("null", [])):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {written}}}')
        assert generation_ends(str(tmp_path)) == expected
    for broken in ("{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [7, "x"]}'):
        (tmp_path / "generation_config.json").write_text(broken)
        with pytest.raises(HptError, match=r"generation_config\.json"):
            generation_ends(str(tmp_path))
