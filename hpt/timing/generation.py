"""Seconds of generation: prefill, and decoding steps in which every running response gets one token.

A decoding step of B sequences that hold C tokens (prompts and responses so far) takes

    max(weight bytes / bandwidth, 2 weights B / FLOP/s) + passes C (KV bytes per token) / bandwidth
    + B vocabulary (seconds per logit of sampling) + overheads per layer, per sequence and per step

where all responses are multiplied with the tokens of all, 4 layers query_width B C / FLOP/s are added.
Prefill takes 2 body tokens / FLOP/s. `generate` runs a batch until its longest response ends, every row padded; vLLM
starts the next response where one ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from hpt.timing.machine import ALL_REDUCE, Machine
from hpt.timing.shape import ModelShape


@dataclass(frozen=True)
class Decoder:
    """A copy of the model that generates.

    quantized: its body has 4-bit weights. adapters: adapters are applied beside the weights.
    gpus: share the copy (tensor parallel). kv_passes: how often a step moves all keys and values.
    joint: every running response is multiplied with the tokens of all, and masked (continuous batching without flash
    attention).
    """

    shape: ModelShape
    machine: Machine
    quantized: bool = False
    adapters: bool = False
    gpus: int = 1
    kv_passes: float = 1.0
    joint: bool = False

    @property
    def _weights(self) -> int:
        return self.shape.body + (self.shape.adapters if self.adapters else 0)

    def step(self, sequences: int, held: float) -> float:
        """Seconds of a decoding step of `sequences` sequences that hold `held` tokens together."""
        shape, machine = self.shape, self.machine
        products = 2 * (self._weights + shape.head) * sequences / machine.decoding_flops
        pairs = 4 * shape.query_width * shape.layers * sequences * held / machine.decoding_flops if self.joint else 0.0
        reading = shape.bytes_read(self.quantized) / machine.bandwidth
        cache = self.kv_passes * held * shape.kv_bytes / machine.bandwidth
        seconds = (max(products, reading) + cache + pairs) / self.gpus
        if self.gpus > 1:
            exchanged = 2 * shape.layers * sequences * shape.width * shape.itemsize / machine.link
            seconds += exchanged + shape.layers * ALL_REDUCE
        sampling = sequences * (shape.vocabulary * machine.sampling_logit + machine.decoding_sequence)
        return seconds + sampling + shape.layers * machine.decoding_layer + machine.decoding_step

    def prefill(self, tokens: float) -> float:
        """Seconds to read `tokens` tokens of prompts."""
        return 2 * self._weights * tokens / self.machine.decoding_flops / self.gpus


def kv_passes_of_generate(shape: ModelShape) -> float:
    """How often a decoding step of `generate` moves all keys and values.

    The cache is concatenated anew (read, written) and read by attention. With a mask, keys and values of grouped heads
    are first repeated for all query heads (read, written `groups` times, read).
    """
    return 3.0 if shape.groups == 1 else 3.0 + 2 * shape.groups


def in_batches(lengths: Sequence[int], prompt: float, size: int, decoder: Decoder) -> float:
    """Seconds of responses of `lengths` tokens in batches of `size`, each until its longest ends. prompt: tokens."""
    seconds = 0.0
    for start in range(0, len(lengths), size):
        batch = lengths[start : start + size]
        rows, steps = len(batch), max(batch)
        seconds += decoder.prefill(rows * prompt)
        seconds += steps * decoder.step(rows, rows * (prompt + steps / 2))
    return seconds


def continuously(lengths: Sequence[int], prompt: float, slots: int, decoder: Decoder) -> float:
    """Seconds of responses of `lengths` tokens, `slots` at a time, each place taken again at once; without prefill."""
    waiting = list(reversed(lengths))
    ends: list[tuple[int, int]] = []  # (decoding step at which a running response ends, at which it began)
    now, begun, seconds = 0, 0, 0.0  # begun: sum of the steps at which running responses began
    while waiting or ends:
        while waiting and len(ends) < slots:
            heapq.heappush(ends, (now + waiting.pop(), now))
            begun += now
        steps = ends[0][0] - now
        held = len(ends) * (prompt + now + steps / 2) - begun
        seconds += steps * decoder.step(len(ends), held)
        now += steps
        while ends and ends[0][0] == now:
            begun -= heapq.heappop(ends)[1]
    return seconds


def slots_of(lengths: Sequence[int], prompt: float, most: int, room: float) -> int:
    """How many responses vLLM runs at once: at most `most`, and as many as `room` tokens of KV cache hold on average.

    A running response is half done on average, and long ones run longer: it holds prompt + sum l^2 / (2 sum l) tokens.
    """
    held = prompt + sum(length**2 for length in lengths) / (2 * sum(lengths))
    return max(1, int(min(most, room / held, len(lengths))))
