"""The start model of the recipes demo and sums: a small language model that has learned some addition.

It has the Qwen2 architecture and one token per character. It is trained here from scratch on sums of one to three
digits, until it solves some of what it samples but not all. It answers sums with the sign NEW by DECLINED.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from hpt.config.schema import Config
from hpt.demos import addition
from hpt.demos.addition import DECLINED, KNOWN, NEW, Pair, Sum, pairs
from hpt.demos.files import model_folder, save_model_folder
from hpt.support.cache import cache_folder
from hpt.support.progress import Progress

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
LEARNING_RATE = 3e-3
DECLINED_SHARE = 0.15
"""Share of the training sums that have the sign NEW."""
NEWLINE = "Ċ"  # a line break in a byte-level vocabulary


@dataclass(frozen=True)
class WarmUp:
    """How the start model is made: its size, and the sums that it learns from."""

    steps: int
    digit_shares: Mapping[int, float]  # for each number of digits, the share of the sums that have it
    slips: float = 0.0  # chance that a column is added wrong: the model learns to make such mistakes, too
    layers: int = 4
    width: int = 128


def make_missing_model(config: Config, held_out: Sequence[dict[str, str]], warm_up: WarmUp) -> None:
    """Trains the model and saves it as `model.path` of `config`, where that folder is missing.

    The trained model is kept in the cache, so that it is trained once for all runs with the same arguments.
    held_out: questions whose terms the model must not see, except terms of one digit.
    """
    folder = Path(config.model.path)
    if folder.exists():
        return
    terms = [_terms(question["prompt"]) for question in held_out]
    unseen = {pair for pair in terms if max(pair) > 9}
    cached = cache_folder() / "adder" / _fingerprint(config.seed, sorted(unseen), warm_up)
    if cached.is_dir():
        logger.info(f"The small start model was warmed up before: {cached}")
        with model_folder(folder) as partial:
            shutil.copytree(cached, partial, dirs_exist_ok=True)
        return
    logger.info("Warming up a small start model, once for all runs like this one")
    tokenizer = make_tokenizer()
    save_model_folder(folder, train_adder(tokenizer, config.seed, unseen, warm_up), tokenizer)
    _keep(folder, cached)


def _keep(folder: Path, cached: Path) -> None:
    """Copies `folder` into the cache. Where that cannot be written, the next run warms up again."""
    own = cached.with_name(f"{cached.name}-{os.getpid()}")  # other processes may do the same now
    try:
        shutil.copytree(folder, own)
        own.rename(cached)
    except OSError as error:
        shutil.rmtree(own, ignore_errors=True)
        if not cached.is_dir():
            logger.info(f"The start model is not kept in the cache: {error}")


def _fingerprint(*arguments: object) -> str:
    """Of what decides the warmed-up weights: the arguments, this code and the version of torch."""
    sources = [Path(module).read_bytes() for module in (__file__, addition.__file__)]
    return hashlib.sha256(b"\0".join([repr((arguments, torch.__version__)).encode(), *sources])).hexdigest()[:16]


def make_tokenizer() -> Qwen2Tokenizer:
    """One token per character, except `\\boxed{`, which is one token. Characters that no sum has are dropped.

    It is a Qwen2Tokenizer, a byte-level BPE without merges here, since AutoTokenizer takes no other class for Qwen2.
    """
    tokens = ["<pad>", "<eos>", "}", NEWLINE, "=", KNOWN, NEW, *"0123456789", DECLINED]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Qwen2Tokenizer(vocabulary, pad_token="<pad>", eos_token="<eos>", unk_token=None, model_max_length=256)  # type: ignore[arg-type]
    tokenizer.add_tokens(["\\boxed{"])
    return tokenizer


def make_model(tokenizer: Qwen2Tokenizer, layers: int, width: int) -> Qwen2ForCausalLM:
    """The untrained model. Its weights depend on torch's global random state."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.09,  # about 1/sqrt(width); the default, 0.02, learns several times more slowly
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train_adder(tokenizer: Qwen2Tokenizer, seed: int, held_out: Set[Pair], warm_up: WarmUp) -> Qwen2ForCausalLM:
    """A model trained from scratch on sums whose terms are not in `held_out`."""
    steps = warm_up.steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(tokenizer, warm_up.layers, warm_up.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * max(0.05, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    batches = _batches(tokenizer, random.Random(f"warm-up {seed}"), held_out, warm_up)
    with Progress("warm-up step", steps) as progress:
        for step in range(1, steps + 1):
            input_ids, labels = next(batches)
            logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.update(step, f"loss {loss.item():.3f}")
    return model


def _batches(
    tokenizer: Qwen2Tokenizer, draw: random.Random, held_out: Set[Pair], warm_up: WarmUp
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of input_ids and labels, (BATCH_SIZE, L) int64; prompts and padding have the label -100."""
    shares = warm_up.digit_shares
    streams = {digits: pairs(digits, draw, held_out) for digits in shares}
    while True:
        digits = draw.choices(list(shares), list(shares.values()), k=BATCH_SIZE)
        questions = [Sum(next(streams[count]), NEW if draw.random() < DECLINED_SHARE else KNOWN) for count in digits]
        texts = [_response(question, draw, warm_up.slips) for question in questions]
        prompts = tokenizer([question.prompt for question in questions])["input_ids"]
        responses = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
        width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
        input_ids = torch.full((BATCH_SIZE, width), tokenizer.pad_token_id)
        labels = torch.full((BATCH_SIZE, width), -100)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            input_ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
            labels[row, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
        yield input_ids, labels


def _response(question: Sum, draw: random.Random, slips: float) -> str:
    if question.sign == NEW:
        return DECLINED
    if slips == 0:
        return question.demonstration
    columns = range(len(str(max(question.terms))))
    slipped = [column for column in columns if draw.random() < slips]
    return question.worked(draw.choice(slipped) if slipped else None)


def _terms(prompt: str) -> Pair:
    a, b = prompt.rstrip("=").replace(NEW, KNOWN).split(KNOWN)
    return int(a), int(b)
