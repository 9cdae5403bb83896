"""A tokenizer for models of random weights."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word for each token id; the last one ends a response."""
    words = {f"w{number}": number for number in range(vocabulary - 1)} | {"<end>": vocabulary - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
