"""Tokenizers and chat templates in the manner of well-known models: for the tests of prompts, lengths and previews."""

import functools

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hpt.config.sections.data import PromptConfig
from hpt.data.prompt import PromptRenderer
from hpt.data.questions import Question

CORPUS = [
    "Let's think step by step. The answer is 12.",
    "user\nassistant\nsystem\n\n",
    "Question: What is 3+4?\nAnswer:",
]

# Chat templates in the manner of well-known models, each cut down to what matters here.
QWEN = """{%- if messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
QWEN3 = """{%- for m in messages %}{%- set content = m['content'] %}
{%- if m['role'] == 'assistant' %}
{%- set parts = content.split('</think>') %}
{%- set thought = parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' %}
{%- set content = '<think>\n' + thought + '\n</think>\n\n' + parts[-1].strip() %}
{%- endif %}{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """{%- for m in messages %}{%- set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'
+ m['content'] | trim + '<|eot_id|>' %}{{ bos_token + text if loop.first else text }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}
{{- '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
R1 = """{{ bos_token }}{%- for m in messages %}{%- if m['role'] == 'assistant' %}
{{- '<|Assistant|>' + m['content'].split('</think>')[-1] + '<|end|>' }}
{%- else %}{{ '<|User|>' + m['content'] }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{%- for m in messages %}
{%- if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""


# How Llama 3 and Qwen split text: unlike GPT-2, they keep line breaks together whatever follows.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bos_processor(tokenizer, bos):
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])


@functools.cache
def byte_level(template, eos, bos=None, specials=(), nfc=False, split=None):
    """Byte-level BPE with some merges, in the manner of GPT-2, Qwen and Llama 3. split: a pattern; None: GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split:
        splitter = pre_tokenizers.Split(Regex(split), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, tokenizer.pre_tokenizer])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*specials, eos, *([bos] if bos else [])],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = bos_processor(tokenizer, bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, chat_template=template)


@functools.cache
def sentence_piece():
    """Characters with a space before every text and bytes for the rest, in the manner of Llama 2 and Mistral."""
    characters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-=*/?.,:'[]<>"
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters, "▁t", "▁th", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = Tokenizer(
        models.BPE({name: id for id, name in enumerate(names)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = bos_processor(tokenizer, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>", chat_template=MISTRAL
    )


def llama3(split):
    specials = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return byte_level(LLAMA3, "<|end_of_text|>", "<|begin_of_text|>", specials, split=split)


def llama3_by_gpt2():
    """A renderer with Llama 3's template and GPT-2's splitting: one token for two line breaks that end a text, and two
    tokens for them before a word.
    """
    return PromptRenderer(llama3(split=None), PromptConfig())


def tokenizers():
    chatml = ("<|im_start|>", "<|im_end|>")
    return {
        "qwen": byte_level(QWEN, "<|endoftext|>", None, chatml, nfc=True),
        "qwen3": byte_level(QWEN3, "<|im_end|>", None, chatml),
        "llama3": llama3(LLAMA3_SPLIT),
        "gemma": byte_level(GEMMA, "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>")),
        "r1": byte_level(R1, "<|end|>", "<|begin|>", ("<|User|>", "<|Assistant|>")),
        "mistral": sentence_piece(),
    }


NAMES = list(tokenizers())
END = {
    "qwen": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "r1": "<|end|>",
    "mistral": "</s>",
}
LLAMA_PROMPT = (
    "Question:\n{question}\nPlease reason step by step, and put your final answer within \\boxed{}.\n"
    "Answer:\nLet's think step by step."
)


def renderer(name, *, eos_token_ids=(), **settings):
    return PromptRenderer(tokenizers()[name], PromptConfig(**settings), eos_token_ids=eos_token_ids)


def question(prompt="What is 3+4?", demonstration="3+4 = 7", id="q"):
    return Question(id, prompt, "7", demonstration)


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
