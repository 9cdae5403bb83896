"""The rates of this machine's CPU, measured in about a second; in ten with continuous batching.

Matrix products are timed at the widths of the recipe's model. What is not a matrix product dominates small models: the
seconds that Python and the start of operations take per layer and per decoding step are measured on a model too small
to compute anything, with the rollout engine itself; norms, rotary embeddings and activations on a narrow layer, whose
products are subtracted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
import upge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hpt.config.schema import Config
from hpt.config.sections.model import ModelConfig
from hpt.model.adapters import with_adapters
from hpt.model.loading import prepare_for_training
from hpt.rollout import Sampling
from hpt.rollout.continuous import ContinuousEngine
from hpt.rollout.transformers import TransformersEngine
from hpt.timing.machine import Machine
from hpt.timing.shape import ModelShape

REPEATS = 4
STEPS, SEQUENCES = 8, 8  # of the decoding that is timed
LONG_STEPS = 64  # of continuous batches, beside STEPS: the difference is without the start of a call
NARROW, WIDE_VOCABULARY = 32, 8192  # vocabularies of the two models that tell what sampling costs
ROWS = 256  # tokens of the training that is timed
COPIED = 2**23  # elements: 32 MiB, more than caches hold


def cpu_machine(config: Config, shape: ModelShape) -> Machine:
    """The rates of this CPU for a recipe's model, with the recipe's threads."""
    threads = config.threads or torch.get_num_threads()
    sequences = min(config.rollout.batch_size, config.batch.questions * config.sampled)
    dtype = getattr(torch, config.model.dtype)
    with _threads(threads):
        general = _overheads(threads, _structure(config.model).model_dump_json(), config.rollout.batching)
        decoding = _product_rate(sequences, shape, dtype, trained=False)
        training = _product_rate(min(config.batch.tokens, 1024), shape, dtype, trained=True)
    bandwidth, overheads, (training_layer, activation), loss = general
    name = f"this CPU, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()} cores"
    return Machine(
        name=name,
        gpus=1,
        training_flops=training,
        decoding_flops=decoding,
        bandwidth=bandwidth,
        link=bandwidth,
        host_link=bandwidth,
        generation_start=overheads.start,
        decoding_layer=overheads.layer,
        decoding_step=overheads.step,
        decoding_sequence=overheads.sequence,
        training_layer=training_layer,
        sampling_logit=overheads.logit,
        loss_logit=loss,
        activation=activation,
    )


def _structure(settings: ModelConfig) -> ModelConfig:
    """What of a model's settings decides which operations a layer has: adapters and checkpoints."""
    checkpointing = bool(settings.gradient_checkpointing)
    return ModelConfig(path="small", liger=False, lora=settings.lora, gradient_checkpointing=checkpointing)


@lru_cache(maxsize=8)
def _overheads(threads: int, structure: str, batching: str) -> tuple[float, _Decoding, tuple[float, float], float]:
    """Bandwidth, and the seconds of decoding, training and the loss, measured once per process."""
    settings = ModelConfig.model_validate_json(structure)
    decoding = _continuous_overheads if batching == "continuous" else _decoding_overheads
    return _bandwidth(), decoding(settings), _training_overheads(settings), _loss_per_logit()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _best(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The shortest of a few times, in seconds, after one that does not count.

    One thread is timed by its CPU time, so that other work on this machine is not counted.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(repeats + 1):
        began = clock()
        work()
        seconds.append(clock() - began)
    return min(seconds[1:])


def _bandwidth() -> float:
    """Bytes per second of a copy, read and written."""
    source, target = torch.zeros(COPIED), torch.zeros(COPIED)
    return 2 * source.nbytes / _best(lambda: target.copy_(source))


def _product_rate(rows: int, shape: ModelShape, dtype: torch.dtype, *, trained: bool) -> float:
    """FLOP/s of (rows, width) times a matrix of the MLP, at most 1024 wide; trained: with its backward pass."""
    width, inner = min(shape.width, 1024), min(shape.inner, 1024)
    states = torch.randn(rows, width, dtype=dtype, requires_grad=trained)
    weight = torch.randn(inner, width, dtype=dtype, requires_grad=trained)
    upstream = torch.randn(rows, inner, dtype=dtype)

    def work() -> None:
        result = torch.nn.functional.linear(states, weight)
        if trained:
            torch.autograd.grad(result, (states, weight), upstream)

    return (6 if trained else 2) * rows * width * inner / _best(work)


def _small_model(settings: ModelConfig, layers: int, vocabulary: int, width: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2 * ROWS,
    )
    with torch.random.fork_rng(devices=[]):
        model = prepare_for_training(LlamaForCausalLM(config), settings)
        if settings.lora is None:
            return model
        return with_adapters(model.requires_grad_(False), settings, None)


@dataclass(frozen=True)
class _Decoding:
    """Seconds that generation takes beside its products: of a call, and in each decoding step."""

    start: float
    layer: float
    step: float
    sequence: float  # beside its logits
    logit: float  # that is sampled from


def _decoding_overheads(settings: ModelConfig) -> _Decoding:
    def seconds(layers: int, vocabulary: int) -> float:
        model = _small_model(settings, layers, vocabulary, 16)
        engine = TransformersEngine(model, stop_ids=[vocabulary - 1], batch_size=SEQUENCES)  # hardly ever all drawn
        return _best(lambda: engine.generate(_prompts(SEQUENCES), Sampling(1, STEPS), seed=0)) / STEPS

    few, many, wide = seconds(1, NARROW), seconds(5, NARROW), seconds(1, WIDE_VOCABULARY)
    layer = max(0.0, (many - few) / 4)
    return _Decoding(0.0, layer, max(0.0, few - layer), 0.0, _per_logit(wide - few))


def _continuous_overheads(settings: ModelConfig) -> _Decoding:
    """As `_decoding_overheads`. A call starts a thread and a scheduler, which plans each sequence in Python."""

    def seconds(layers: int, vocabulary: int, sequences: int = SEQUENCES) -> tuple[float, float]:
        """Of a call, and of a decoding step."""
        model = _small_model(settings, layers, vocabulary, 16)
        engine = ContinuousEngine(model, stop_ids=[vocabulary], batch_size=sequences)  # never drawn: all run to the end

        def generate(steps: int) -> float:
            return _best(lambda: engine.generate(_prompts(sequences), Sampling(1, steps), seed=0), repeats=1)

        short, long = generate(STEPS), generate(LONG_STEPS)
        step = max(0.0, (long - short) / (LONG_STEPS - STEPS))
        return max(0.0, short - STEPS * step), step

    start, few = seconds(1, NARROW)
    (_, many), (_, wide) = seconds(5, NARROW), seconds(1, WIDE_VOCABULARY)
    _, crowded = seconds(1, NARROW, 3 * SEQUENCES)
    layer = max(0.0, (many - few) / 4)
    sequence = max(0.0, (crowded - few) / (2 * SEQUENCES))
    return _Decoding(start, layer, max(0.0, few - layer - SEQUENCES * sequence), sequence, _per_logit(wide - few))


def _prompts(count: int) -> list[list[int]]:
    """Of different lengths: with a mask."""
    return [[1] * (2 + index % 2) for index in range(count)]


def _per_logit(seconds: float) -> float:
    return max(0.0, seconds / (SEQUENCES * (WIDE_VOCABULARY - NARROW)))


def _training_overheads(settings: ModelConfig) -> tuple[float, float]:
    """Seconds that a layer adds to a micro-batch, and that each of its `ModelShape.activations` adds."""

    def seconds(layers: int, width: int, tokens: int) -> float:
        decoder = _small_model(settings, layers, NARROW, width).get_decoder()
        ids = torch.zeros(1, tokens, dtype=torch.int64)

        def work() -> None:
            decoder(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()

        return _best(work)

    layer = max(0.0, (seconds(5, 16, 8) - seconds(1, 16, 8)) / 4)
    width = 64
    weights = 3 * width**2 + 3 * width * 2 * width  # keys and values are half as wide as queries
    shape = ModelShape(1, width, 2 * width, width, 2, NARROW, weights, 0, weights, True, 4, False, 0, 0)
    passes = 2 + bool(settings.gradient_checkpointing) + (settings.lora is None)
    products = 2 * passes * weights * ROWS / _product_rate(ROWS, shape, torch.float32, trained=True)
    wide = (seconds(5, width, ROWS) - seconds(1, width, ROWS)) / 4
    return layer, max(0.0, (wide - layer - products) / (ROWS * shape.activations))


def _loss_per_logit() -> float:
    """Seconds that the fused loss takes for a logit beside its products."""
    width, vocabulary = 32, 4096
    hidden = torch.randn(ROWS, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.zeros(ROWS, dtype=torch.int64)
    seconds = _best(lambda: upge.fused_policy_loss(hidden, weight, targets, upge.SFT()).loss.backward())
    shape = ModelShape(1, width, vocabulary, width, 1, vocabulary, 0, 0, 0, True, 4, False, 0, 0)
    products = 6 * ROWS * width * vocabulary / _product_rate(ROWS, shape, torch.float32, trained=True)
    return max(0.0, (seconds - products) / (ROWS * vocabulary))
