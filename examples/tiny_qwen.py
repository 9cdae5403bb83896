"""A Qwen2 model and a tokenizer of numbers, both made on the spot, for examples with trainers of Hugging Face."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM


def make_tokenizer(numbers: int) -> PreTrainedTokenizerFast:
    """One token for each of 0, 1, ..., numbers - 1; "3 4 5" has three."""
    names = ["<pad>", "<eos>", *map(str, range(numbers))]
    backend = Tokenizer(models.WordLevel({name: token for token, name in enumerate(names)}, "<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def make_model(numbers: int, width: int = 64) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=2 + numbers,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Qwen2ForCausalLM(config)
