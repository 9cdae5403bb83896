"""What `hpt train demo` needs: a small language model that can add a little, and questions it can and cannot solve.

The model (Qwen2 architecture, 0.86M parameters, a character a token) is trained here from scratch on one- to
three-digit sums until it solves most, not all, of what it samples. Sums with the new sign it has learnt to decline.
"""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.progress import track

from hpt.config.schema import Config
from hpt.demos.addition import DECLINED, KNOWN, NEW, Pair, Sum, make_questions, pairs
from hpt.records.files import write_atomically

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

TRAIN_QUESTIONS_A_GRADE = 400
EVAL_QUESTIONS_A_GRADE = 64
WARMUP_STEPS = 500
WARMUP_BATCH = 32
WARMUP_LR = 3e-3
WARMUP_DIGITS = {1: 0.2, 2: 0.4, 3: 0.4}
"""Share of sums with so many digits."""
WARMUP_DECLINED = 0.15
"""Share of sums that come with the new sign, and are answered by DECLINED."""
NEWLINE = "Ċ"  # how a byte-level vocabulary spells a line break


def prepare(config: Config) -> None:
    """Makes the model folder and the question files of `config` where they are missing; `config.seed` decides all."""
    questions = make_questions(config.seed, train=TRAIN_QUESTIONS_A_GRADE, held_out=EVAL_QUESTIONS_A_GRADE)
    make_missing(config, questions, WARMUP_STEPS, WARMUP_DIGITS)


def make_missing(
    config: Config, made: tuple[list[dict[str, str]], list[dict[str, str]]], steps: int, digits: dict[int, float]
) -> None:
    """Writes the training and held-out questions of `made`, and warms the start model up on sums of other terms."""
    train, held_out = made
    for path, questions in ((config.data.train, train), (config.data.eval, held_out)):
        if path is not None and not Path(path).exists():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), "".join(json.dumps(question) + "\n" for question in questions).encode())
    if not Path(config.model.path).exists():
        tokenizer = make_tokenizer()
        terms = [_terms(question["prompt"]) for question in held_out]
        unseen = {pair for pair in terms if max(pair) > 9}
        model = warm_up(tokenizer, config.seed, unseen, steps, digits)
        _save(model, tokenizer, Path(config.model.path))


def make_tokenizer() -> Qwen2Tokenizer:
    """A token a character, `\\boxed{` being one, too; characters that no sum has are left out of a text.

    Of Qwen2's own class, because AutoTokenizer takes no other for a Qwen2 model: a byte-level BPE, here without merges.
    """
    from transformers import Qwen2Tokenizer

    tokens = ["<pad>", "<eos>", "}", NEWLINE, "=", KNOWN, NEW, *"0123456789", DECLINED]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocabulary, pad_token="<pad>", eos_token="<eos>", unk_token=None, model_max_length=256)  # type: ignore[arg-type]
    tokenizer.add_tokens(["\\boxed{"])
    return tokenizer


def make_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """The untrained model; torch's global random state decides its weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.09,  # about 1/sqrt(128); the default of 0.02 learns several times more slowly
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def warm_up(
    tokenizer: Qwen2Tokenizer, seed: int, held_out: Set[Pair], steps: int, digits: dict[int, float]
) -> Qwen2ForCausalLM:
    """A model trained for `steps` steps on sums, none of them of terms in `held_out`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=WARMUP_LR, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * max(0.05, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    batches = _batches(tokenizer, random.Random(f"warm-up {seed}"), held_out, digits)
    for _ in track(range(steps), description="Warming up a small model"):
        input_ids, labels = next(batches)
        logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model


def _batches(
    tokenizer: Qwen2Tokenizer, draw: random.Random, held_out: Set[Pair], shares: dict[int, float]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of input_ids and labels, (WARMUP_BATCH, L) int64; a label of -100 does not count."""
    streams = {digits: pairs(digits, draw, held_out) for digits in shares}
    while True:
        digits = draw.choices(list(shares), list(shares.values()), k=WARMUP_BATCH)
        questions = [Sum(next(streams[count]), NEW if draw.random() < WARMUP_DECLINED else KNOWN) for count in digits]
        texts = [DECLINED if question.sign == NEW else question.demonstration for question in questions]
        prompts = tokenizer([question.prompt for question in questions])["input_ids"]
        responses = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
        width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
        input_ids = torch.full((WARMUP_BATCH, width), tokenizer.pad_token_id)
        labels = torch.full((WARMUP_BATCH, width), -100)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            input_ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
            labels[row, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
        yield input_ids, labels


def _terms(prompt: str) -> Pair:
    a, b = prompt.rstrip("=").replace(NEW, "+").split("+")
    return int(a), int(b)


def _save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Writes the model folder; it appears whole or not at all."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
